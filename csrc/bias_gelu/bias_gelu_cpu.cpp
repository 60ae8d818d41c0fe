#include "bias_gelu_cpu.h"

#include <algorithm>
#include <vector>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"
#include "../common/row_blocks.h"

namespace tunecore {
namespace {

const BiasGeluKernels& kernels() {
  return best<BiasGeluKernels>({
      {Capability::baseline, &bias_gelu_kernels_default},
#ifdef TUNECORE_HAS_BIAS_GELU_AVX2
      {Capability::avx2, &bias_gelu_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_BIAS_GELU_AVX512
      {Capability::avx512, &bias_gelu_kernels_avx512},
#endif
  });
}

}  // namespace

void bias_gelu_forward_cpu(const BiasGeluParams& p, BiasGeluType type, int64_t rows, int threads) {
  const BiasGeluKernels& k = kernels();
  const auto run = type == BiasGeluType::f32 ? k.forward_f32 : k.forward_bf16;
  for_row_blocks(rows, threads, [&](int64_t first, int64_t last) { run(p, first, last); });
}

void bias_gelu_backward_cpu(const BiasGeluParams& p, BiasGeluType type, int64_t rows, float* dbias_F, int threads) {
  const BiasGeluKernels& k = kernels();
  const auto run = type == BiasGeluType::f32 ? k.backward_f32 : k.backward_bf16;
  RowSums sums(rows, dbias_F ? p.width : 0);
  for_row_blocks(rows, threads, [&](int64_t first, int64_t last) { run(p, first, last, sums.part(first)); });
  sums.add_up(dbias_F, threads);
}

}  // namespace tunecore
