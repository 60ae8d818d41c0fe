// Softmax, cross-entropy and gradient over a chunk of logits, in one in-place pass.
// Shape letters: N rows with a target, V vocabulary. May be included by per-ISA files: POD only.
#pragma once
#include <stdint.h>

namespace tunecore {

struct MaskedLmLossParams {
  void* logits_NV;           // float or bf16; overwritten by the gradient of the sum where `gradient`
  int64_t row_stride;        // elements between rows; columns are adjacent
  int64_t vocab;             // V
  const float* bias_V;       // added to every row, or NULL
  const int64_t* targets_N;  // checked: 0 <= target < V
  double* loss_N;            // out: loss of each row
  uint8_t* correct_N;        // out: 1 where the target is the first of the largest logits
  float label_smoothing;
  float z_loss;
  bool gradient;
};

struct MaskedLmLossKernels {
  // One row; scratch_V holds V floats (unused by float logits).
  void (*row_f32)(const MaskedLmLossParams& p, int64_t row, float* scratch_V);
  void (*row_bf16)(const MaskedLmLossParams& p, int64_t row, float* scratch_V);
  // sum_V[begin:end] += column sums of the first `rows` rows.
  void (*columns_f32)(const void* x_NV, int64_t row_stride, int64_t rows, int64_t begin, int64_t end, float* sum_V);
  void (*columns_bf16)(const void* x_NV, int64_t row_stride, int64_t rows, int64_t begin, int64_t end, float* sum_V);
};

extern const MaskedLmLossKernels masked_lm_loss_kernels_default;
extern const MaskedLmLossKernels masked_lm_loss_kernels_avx2;
extern const MaskedLmLossKernels masked_lm_loss_kernels_avx512;

}  // namespace tunecore
