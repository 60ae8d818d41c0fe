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
  size_t item;
  int64_t first, last;
};

// Of a tensor with a gradient of some rows, blocks are whole rows.
int64_t block_of(const AdamWRows& some) {
  return some.width ? std::max<int64_t>(1, kBlock / some.width) * some.width : kBlock;
}

void step_of_rows(const AdamWKernels& k, const AdamWItem& item, const AdamWParams& p, int64_t first, int64_t last) {
  const AdamWTensor& x = item.tensor;
  const AdamWRows& some = item.some;
  const int64_t* const end = some.rows + some.row_count;
  const int64_t* row = std::lower_bound(some.rows, end, first / some.width);
  for (int64_t at = first; at < last; ++row) {
    const int64_t next = row == end ? last : std::min(last, *row * some.width);
    k.without_gradient(x, p, at, next);
    at = next + some.width;
    if (next == last) break;
    AdamWTensor one = x;
    one.weight += next, one.mean += next, one.square += next;
    if (one.rounded) one.rounded += next;
    one.gradient += (row - some.rows) * some.width;
    k.elements(one, p, 0, some.width);
  }
}

}  // namespace

void adamw_cpu(const std::vector<AdamWItem>& items, const AdamWParams& params, int threads) {
  const AdamWKernels& k = kernels();
  std::vector<Block> blocks;
  for (size_t n = 0; n < items.size(); ++n)
    for (int64_t first = 0, step = block_of(items[n].some), count = items[n].tensor.count; first < count; first += step)
      blocks.push_back({n, first, std::min(count, first + step)});
  parallel_for(int64_t(blocks.size()), threads, [&](int64_t b, int) {
    const Block& block = blocks[size_t(b)];
    const AdamWItem& item = items[block.item];
    if (item.some.width)
      step_of_rows(k, item, params, block.first, block.last);
    else
      k.elements(item.tensor, params, block.first, block.last);
  });
}

}  // namespace tunecore
