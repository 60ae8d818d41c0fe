// AdamW in one pass over memory: the gradient scaled, both means, the fp32 weight, and the weight rounded to bf16.
// May be included by per-ISA files: POD only.
#pragma once
#include <stdint.h>

namespace tunecore {

// One tensor. The step's number enters through the two corrections of Adam's means (Kingma and Ba 2015).
struct AdamWTensor {
  float* weight;
  const float* gradient;
  float* mean;
  float* square;
  uint16_t* rounded;  // bf16, written; or null
  int64_t count;
  float keep;       // 1 - lr * weight_decay
  float step_size;  // lr / (1 - beta1^t)
  float root;       // 1 / sqrt(1 - beta2^t)
};

struct AdamWParams {
  float beta2, rest1, rest2;  // 1 - beta in rest1 and rest2, taken in double: 1 - 0.999f is 5e-5 off
  float eps;
  float scale;  // of every gradient
};

struct AdamWKernels {
  void (*elements)(const AdamWTensor& x, const AdamWParams& p, int64_t first, int64_t last);
  // The same where the gradient is 0; it is not read.
  void (*without_gradient)(const AdamWTensor& x, const AdamWParams& p, int64_t first, int64_t last);
};

extern const AdamWKernels adamw_kernels_default;
extern const AdamWKernels adamw_kernels_avx2;
extern const AdamWKernels adamw_kernels_avx512;

}  // namespace tunecore
