#include "dropout_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"

namespace tunecore {
namespace {

constexpr int64_t kBlock = 64 * kDropoutStep;

const DropoutKernels& kernels() {
  return best<DropoutKernels>({
      {Capability::baseline, &dropout_kernels_default},
#ifdef TUNECORE_HAS_DROPOUT_AVX2
      {Capability::avx2, &dropout_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_DROPOUT_AVX512
      {Capability::avx512, &dropout_kernels_avx512},
#endif
  });
}

}  // namespace

void dropout_cpu(const DropoutParams& p, DropoutType type, int threads) {
  const DropoutKernels& k = kernels();
  const auto run = type == DropoutType::f32 ? k.block_f32 : k.block_bf16;
  parallel_for((p.count + kBlock - 1) / kBlock, threads, [&](int64_t block, int) {
    run(p, block * kBlock, std::min(p.count, (block + 1) * kBlock));
  });
}

}  // namespace tunecore
