// All rows on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include "residual_norm.h"

namespace tunecore {

enum class ResidualNormType { f32, bf16 };

void residual_norm_forward_cpu(const ResidualNormParams& params, ResidualNormType type, int64_t rows, int threads);

// sums [kResidualNormSums, E] is overwritten.
void residual_norm_backward_cpu(const ResidualNormParams& params, ResidualNormType type, int64_t rows, float* sums,
                                int threads);

}  // namespace tunecore
