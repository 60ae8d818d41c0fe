#include "gemm_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/cpu/integers.h"
#include "../common/parallel.h"
#include "../common/scratch.h"

namespace tunecore {
namespace {

// Depth of one pass: a panel of B of this depth and one of A stay in the first-level cache.
constexpr int64_t kDepth = 512;
// Rows and columns whose panels exist at once: 6 MiB each, of the last-level cache.
constexpr int64_t kRowsAtOnce = 3072, kColumnsAtOnce = 3072;
// A work item: its panels of A (192 KiB) stay in the second-level cache. Multiples of every panel_rows (4, 6) and
// panel_columns (8, 16, 64).
constexpr int64_t kTileRows = 96, kTileColumns = 768, kLeastTileColumns = 64, kLeastTileRows = 24;
constexpr int kItemsPerThread = 8;

const GemmKernels& kernels() {
  return best<GemmKernels>({
      {Capability::baseline, &gemm_kernels_default},
#ifdef TUNECORE_HAS_GEMM_AVX2
      {Capability::avx2, &gemm_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_GEMM_AVX512
      {Capability::avx512, &gemm_kernels_avx512},
#endif
  });
}

// `whole` cut into the fewest ranges of at most `most`, all but the last of one size, a multiple of `unit`.
class Cuts {
 public:
  Cuts(int64_t whole, int64_t most, int64_t unit)
      : whole_(whole), step_(std::max(unit, round_up(parts(whole, std::max<int64_t>(1, parts(whole, most))), unit))) {}
  int64_t count() const { return parts(whole_, step_); }
  int64_t step() const { return step_; }
  GemmRange operator[](int64_t i) const { return {i * step_, std::min(whole_, (i + 1) * step_)}; }

 private:
  int64_t whole_, step_;
};

struct Block {
  GemmRange rows, columns, depth;
};

// Both packings in one parallel region, then the tiles in another. How rows and columns are cut changes no sum.
class Product {
 public:
  Product(const GemmParams& p, int threads) : p_(p), k_(kernels()), threads_(threads) {}

  void run() {
    static thread_local Scratch scratch;
    const Cuts rows(p_.rows, kRowsAtOnce, kTileRows), columns(p_.columns, kColumnsAtOnce, k_.panel_columns);
    const Cuts depth(p_.depth, kDepth, 1);
    const int64_t a_size = round_up(rows.step(), k_.panel_rows) * depth.step() + kOverrun;
    const int64_t b_size = round_up(columns.step(), k_.panel_columns) * depth.step() + kOverrun;
    a_ = reinterpret_cast<float*>(scratch.of(size_t(a_size + b_size) * sizeof(float)));
    b_ = a_ + a_size;
    for (int64_t n = 0; n < columns.count(); ++n)
      for (int64_t k = 0; k < depth.count(); ++k)
        for (int64_t m = 0; m < rows.count(); ++m) {
          const Block block{rows[m], columns[n], depth[k]};
          pack(block, m == 0);
          multiply(block, k == 0);
        }
  }

 private:
  static constexpr int64_t kOverrun = 16;  // floats, a multiple of a cache line
  static constexpr int64_t kPanelsAtOnce = 8;

  void pack(const Block& block, bool columns_too) {
    const int64_t depth = block.depth.end - block.depth.begin;
    const auto of = [&](GemmRange range, int64_t unit) { return parts(range.end - range.begin, unit * kPanelsAtOnce); };
    const int64_t of_rows = of(block.rows, k_.panel_rows);
    const int64_t of_columns = columns_too ? of(block.columns, k_.panel_columns) : 0;
    parallel_for(of_rows + of_columns, threads_, [&](int64_t item, int) {
      const bool is_rows = item < of_rows;
      const GemmRange all = is_rows ? block.rows : block.columns;
      const int64_t step = (is_rows ? k_.panel_rows : k_.panel_columns) * kPanelsAtOnce;
      const int64_t offset = (is_rows ? item : item - of_rows) * step;
      const GemmRange some{all.begin + offset, std::min(all.end, all.begin + offset + step)};
      (is_rows ? k_.pack_rows : k_.pack_columns)(p_, some, block.depth, (is_rows ? a_ : b_) + offset * depth);
    });
  }

  void multiply(const Block& block, bool fresh) {
    const int64_t depth = block.depth.end - block.depth.begin;
    const int64_t rows = block.rows.end - block.rows.begin, columns = block.columns.end - block.columns.begin;
    int64_t tall = kTileRows, wide = kTileColumns;
    const auto too_few = [&] { return parts(rows, tall) * parts(columns, wide) < kItemsPerThread * int64_t(threads_); };
    // Still whole panels: an AVX-512 panel has 64 columns, and half of 192 is none of its multiples.
    while (threads_ > 1 && wide > kLeastTileColumns && too_few()) wide = round_up(wide / 2, k_.panel_columns);
    while (threads_ > 1 && tall > kLeastTileRows && too_few()) tall = round_up(tall / 2, k_.panel_rows);
    const int64_t across = parts(columns, wide);
    parallel_for(parts(rows, tall) * across, threads_, [&](int64_t item, int) {
      const int64_t r = item / across * tall, n = item % across * wide;
      const GemmRange some_rows{block.rows.begin + r, block.rows.begin + std::min(rows, r + tall)};
      const GemmRange some_columns{block.columns.begin + n, block.columns.begin + std::min(columns, n + wide)};
      k_.multiply(p_, some_rows, some_columns, depth, a_ + r * depth, b_ + n * depth, fresh);
    });
  }

  const GemmParams& p_;
  const GemmKernels& k_;
  int threads_;
  float *a_ = nullptr, *b_ = nullptr;
};

}  // namespace

void gemm_cpu(const GemmParams& p, int threads) {
  if (p.depth == 0 && !p.add)
    for (int64_t m = 0; m < p.rows; ++m)
      for (int64_t n = 0; n < p.columns; ++n) p.c_MN[m * p.c_stride + n] = p.bias_N ? p.bias_N[n] : 0.0f;
  if (p.rows && p.columns && p.depth) Product(p, threads).run();
}

}  // namespace tunecore
