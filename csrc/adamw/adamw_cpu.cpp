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
  int64_t first;
};

}  // namespace

void adamw_cpu(const std::vector<AdamWTensor>& tensors, const AdamWParams& params, int threads) {
  const AdamWKernels& k = kernels();
  std::vector<Block> blocks;
  for (size_t n = 0; n < tensors.size(); ++n)
    for (int64_t first = 0; first < tensors[n].count; first += kBlock) blocks.push_back({n, first});
  parallel_for(int64_t(blocks.size()), threads, [&](int64_t b, int) {
    const Block& block = blocks[size_t(b)];
    const AdamWTensor& x = tensors[block.tensor];
    k.elements(x, params, block.first, std::min(x.count, block.first + kBlock));
  });
}

}  // namespace tunecore
