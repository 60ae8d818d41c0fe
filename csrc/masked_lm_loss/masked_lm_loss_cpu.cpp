#include "masked_lm_loss_cpu.h"

#include <algorithm>
#include <vector>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"

namespace tunecore {
namespace {

constexpr int64_t kColumnBlock = 2048;

const MaskedLmLossKernels& kernels() {
  return best<MaskedLmLossKernels>({
      {Capability::baseline, &masked_lm_loss_kernels_default},
#ifdef TUNECORE_HAS_MASKED_LM_LOSS_AVX2
      {Capability::avx2, &masked_lm_loss_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_MASKED_LM_LOSS_AVX512
      {Capability::avx512, &masked_lm_loss_kernels_avx512},
#endif
  });
}

}  // namespace

MaskedLmLossSums masked_lm_loss_cpu(MaskedLmLossParams params, LogitType type, int64_t rows, int threads) {
  const MaskedLmLossKernels& k = kernels();
  const auto run_row = type == LogitType::f32 ? k.row_f32 : k.row_bf16;
  const int64_t scratch_size = type == LogitType::f32 ? 0 : params.vocab;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows)));
  std::vector<float> scratch(scratch_size * threads);
  std::vector<double> loss(rows);
  std::vector<uint8_t> correct(rows);
  params.loss_N = loss.data();
  params.correct_N = correct.data();
  parallel_for(rows, threads, [&](int64_t row, int worker) {
    run_row(params, row, scratch.data() + scratch_size * worker);
  });
  MaskedLmLossSums sums{0.0, 0};
  for (int64_t n = 0; n < rows; ++n) {
    sums.loss += loss[n];
    sums.correct += correct[n];
  }
  return sums;
}

void column_sum_cpu(const void* x_NV, LogitType type, int64_t rows, int64_t row_stride, int64_t vocab, float* sum_V,
                    int threads) {
  const MaskedLmLossKernels& k = kernels();
  const auto run_columns = type == LogitType::f32 ? k.columns_f32 : k.columns_bf16;
  parallel_for((vocab + kColumnBlock - 1) / kColumnBlock, threads, [&](int64_t block, int) {
    const int64_t begin = block * kColumnBlock;
    run_columns(x_NV, row_stride, rows, begin, std::min(vocab, begin + kColumnBlock), sum_V);
  });
}

}  // namespace tunecore
