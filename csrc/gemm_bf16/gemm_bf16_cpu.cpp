#include "gemm_bf16_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/cpu/integers.h"
#include "../common/parallel.h"
#include "../common/scratch.h"

namespace tunecore {
namespace {

constexpr int64_t kLeastTall = 32, kLeastWide = 128;
constexpr int kItemsPerThread = 4;
constexpr int64_t kGroupBytes = 4 << 20;  // of panels that are made before they are multiplied: still in cache then

struct Item {
  int64_t tall, wide;
};

// How a product of so many columns is cut, so that each thread has several items and all as many.
Item item_of(const GemmBf16Params& p, int64_t columns, int threads, const GemmBf16Kernels& kernels) {
  int64_t tall = kernels.item_rows, wide = kernels.item_columns;
  const auto too_few = [&] {
    return threads > 1 && parts(p.rows, tall) * parts(columns, wide) < kItemsPerThread * int64_t(threads);
  };
  const auto cut_columns = [&] {
    while (wide > kLeastWide && too_few()) wide = round_up(wide / 2, kernels.panel_columns);
  };
  // Rows that every item copies are cut first, else the columns, whose panels every item of other rows reads.
  if (kernels.reads_rows && p.a_MK.column_stride == 1) cut_columns();
  while (tall > kLeastTall && too_few()) tall /= 2;
  cut_columns();
  return {round_up(parts(p.rows, round_up(parts(p.rows, tall), threads)), kernels.row_step), wide};
}

}  // namespace

const GemmBf16Kernels* gemm_bf16_kernels() {
#ifdef TUNECORE_HAS_GEMM_BF16_AMX_BF16
  if (capability() >= Capability::amx_bf16) return &gemm_bf16_kernels_amx_bf16;
#endif
#ifdef TUNECORE_HAS_GEMM_BF16_AVX512_BF16
  if (capability() >= Capability::avx512_bf16) return &gemm_bf16_kernels_avx512_bf16;
#endif
  return nullptr;
}

void gemm_bf16_cpu(const GemmBf16Params& p, int threads, const GemmBf16Kernels& kernels) {
  static thread_local Scratch memory;
  if (p.rows == 0 || p.columns == 0) return;
  const int64_t panel_width = kernels.panel_columns;
  const int64_t panel_bytes = panel_width * round_up(p.depth, kGemmBf16Step) * 2;
  const int64_t panels = parts(p.columns, panel_width);
  const int64_t most = std::max(kGroupBytes / std::max<int64_t>(panel_bytes, 1), kernels.item_columns / panel_width);
  const int64_t group = parts(panels, parts(panels, most));  // alike in size
  const auto [tall, wide] = item_of(p, group * panel_width, threads, kernels);
  const int64_t scratch = round_up(kernels.scratch_bytes(tall, wide), 64);
  char* const packed = memory.of(size_t(group * panel_bytes + scratch * threads));
  char* const own = packed + group * panel_bytes;
  const auto panel = [&](int64_t n) { return reinterpret_cast<uint32_t*>(packed + n * panel_bytes); };
  for (int64_t g = 0; g < panels; g += group) {
    const int64_t begin = g * panel_width, end = std::min(p.columns, (g + group) * panel_width);
    parallel_for(std::min(group, panels - g), threads, [&](int64_t n, int worker) {
      kernels.pack(p, begin + n * panel_width, panel(n), own + worker * scratch);
    });
    const int64_t across = parts(end - begin, wide);
    parallel_for(parts(p.rows, tall) * across, threads, [&](int64_t item, int worker) {
      const int64_t r = item / across * tall, n = item % across * wide;
      kernels.multiply(p, {r, std::min(p.rows, r + tall)}, {begin + n, std::min(end, begin + n + wide)},
                       panel(n / panel_width), own + worker * scratch);
    });
  }
}

}  // namespace tunecore
