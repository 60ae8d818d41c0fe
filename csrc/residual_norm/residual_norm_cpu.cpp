#include "residual_norm_cpu.h"

#include "../common/cpu/capability.h"
#include "../common/row_blocks.h"

namespace tunecore {
namespace {

const ResidualNormKernels& kernels() {
  return best<ResidualNormKernels>({
      {Capability::baseline, &residual_norm_kernels_default},
#ifdef TUNECORE_HAS_RESIDUAL_NORM_AVX2
      {Capability::avx2, &residual_norm_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_RESIDUAL_NORM_AVX512
      {Capability::avx512, &residual_norm_kernels_avx512},
#endif
  });
}

}  // namespace

void residual_norm_forward_cpu(const ResidualNormParams& p, ResidualNormType type, int64_t rows, int threads) {
  const ResidualNormKernels& k = kernels();
  const auto run = type == ResidualNormType::f32 ? k.forward_f32 : k.forward_bf16;
  for_row_blocks(rows, threads, [&](int64_t first, int64_t last) { run(p, first, last); });
}

void residual_norm_backward_cpu(const ResidualNormParams& p, ResidualNormType type, int64_t rows, float* sums,
                                int threads) {
  const ResidualNormKernels& k = kernels();
  const auto run = type == ResidualNormType::f32 ? k.backward_f32 : k.backward_bf16;
  RowSums parts(rows, kResidualNormSums * p.width);
  for_row_blocks(rows, threads, [&](int64_t first, int64_t last) { run(p, first, last, parts.part(first)); });
  parts.add_up(sums, threads);
}

}  // namespace tunecore
