// All rows on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include "bias_gelu.h"

namespace tunecore {

enum class BiasGeluType { f32, bf16 };

void bias_gelu_forward_cpu(const BiasGeluParams& params, BiasGeluType type, int64_t rows, int threads);

// dbias_F [F] may be null.
void bias_gelu_backward_cpu(const BiasGeluParams& params, BiasGeluType type, int64_t rows, float* dbias_F, int threads);

}  // namespace tunecore
