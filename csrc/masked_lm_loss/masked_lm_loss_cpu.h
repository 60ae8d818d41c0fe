// The whole chunk on the CPU: rows over threads, variant by capability.
#pragma once
#include "masked_lm_loss.h"

namespace tunecore {

enum class LogitType { f32, bf16 };

struct MaskedLmLossSums {
  double loss;
  int64_t correct;
};

// Fills the gradient in place; loss and correct are summed in row order, so they do not depend on `threads`.
// scratch is made here: threads x V floats for bf16, a few bytes a row for all.
MaskedLmLossSums masked_lm_loss_cpu(MaskedLmLossParams params, LogitType type, int64_t rows, int threads);

// sum_V += column sums of x_NV, rows in order.
void column_sum_cpu(const void* x_NV, LogitType type, int64_t rows, int64_t row_stride, int64_t vocab, float* sum_V,
                    int threads);

}  // namespace tunecore
