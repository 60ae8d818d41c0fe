#include "adamw_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"

namespace tunecore {
namespace {

constexpr int64_t kBlock = 1 << 15;

const AdamWKernels& kernels() {
  return best<AdamWKernels>({
      {Capability::baseline, &adamw_kernels_default},
#ifdef TUNECORE_HAS_ADAMW_AVX2
      {Capability::avx2, &adamw_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_ADAMW_AVX512
      {Capability::avx512, &adamw_kernels_avx512},
#endif
  });
}

struct Block {
  size_t tensor;
  int64_t first, last;
};

// Of a tensor with a gradient of some rows, blocks are whole rows.
int64_t block_of(const AdamWTensor& x) { return x.width ? std::max<int64_t>(1, kBlock / x.width) * x.width : kBlock; }

void step_of_rows(const AdamWKernels& k, const AdamWTensor& x, const AdamWParams& p, int64_t first, int64_t last) {
  const int64_t* const end = x.rows + x.row_count;
  const int64_t* row = std::lower_bound(x.rows, end, first / x.width);
  for (int64_t at = first; at < last; ++row) {
    const int64_t next = row == end ? last : std::min(last, *row * x.width);
    k.without_gradient(x, p, at, next);
    at = next + x.width;
    if (next == last) break;
    AdamWTensor one = x;
    one.weight += next, one.mean += next, one.square += next;
    if (one.rounded) one.rounded += next;
    one.gradient += (row - x.rows) * x.width;
    k.elements(one, p, 0, x.width);
  }
}

}  // namespace

void adamw_cpu(const std::vector<AdamWTensor>& tensors, const AdamWParams& params, int threads) {
  const AdamWKernels& k = kernels();
  std::vector<Block> blocks;
  for (size_t n = 0; n < tensors.size(); ++n)
    for (int64_t first = 0, step = block_of(tensors[n]); first < tensors[n].count; first += step)
      blocks.push_back({n, first, std::min(tensors[n].count, first + step)});
  parallel_for(int64_t(blocks.size()), threads, [&](int64_t b, int) {
    const Block& block = blocks[size_t(b)];
    const AdamWTensor& x = tensors[block.tensor];
    x.width ? step_of_rows(k, x, params, block.first, block.last) : k.elements(x, params, block.first, block.last);
  });
}

}  // namespace tunecore
