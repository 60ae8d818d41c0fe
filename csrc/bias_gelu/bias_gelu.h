// gelu(x + bias) and its gradient, x the rows [T, F] that a linear layer without its bias makes.
// May be included by per-ISA files: POD only.
#pragma once
#include <stdint.h>

namespace tunecore {

struct BiasGeluParams {
  const void* x_TF;
  const void* bias_F;   // of the type of x, or null
  const void* dout_TF;  // backward only
  void* out_TF;         // the result, or dx
  int64_t width;        // F
  bool tanh;            // the approximation by tanh (GPT-2's gelu_new), else the exact one by erf
};

struct BiasGeluKernels {
  // Rows [first, last).
  void (*forward_f32)(const BiasGeluParams& p, int64_t first, int64_t last);
  void (*forward_bf16)(const BiasGeluParams& p, int64_t first, int64_t last);
  // The same, and dbias_F += the sum of dx over the rows, before it is rounded; null where it is not wanted.
  void (*backward_f32)(const BiasGeluParams& p, int64_t first, int64_t last, float* dbias_F);
  void (*backward_bf16)(const BiasGeluParams& p, int64_t first, int64_t last, float* dbias_F);
};

extern const BiasGeluKernels bias_gelu_kernels_default;
extern const BiasGeluKernels bias_gelu_kernels_avx2;
extern const BiasGeluKernels bias_gelu_kernels_avx512;

}  // namespace tunecore
