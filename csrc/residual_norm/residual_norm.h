// LayerNorm(residual + dropout(x + input_bias)) and its gradients; with nothing added, LayerNorm or RMSNorm alone.
// May be included by per-ISA files: POD only.
#pragma once
#include <stdint.h>

namespace tunecore {

struct ResidualNormParams {
  const void* x_TE;           // forward, unused where z_TE is given whole (plain norm)
  const void* residual_TE;    // or null
  const void* input_bias_E;   // or null
  void* z_TE;                 // the sum that is normalised: written in forward unless plain, read in backward
  const void* weight_E;
  const void* bias_E;         // or null
  void* y_TE;                 // forward
  float* stats_T2;            // mean and 1 / deviation of each row: written in forward, read in backward
  const void* dy_TE;          // backward
  void* dz_TE;                // backward: the gradient of z, which is that of the residual
  void* dx_TE;                // backward: the gradient of x; null where it is dz
  int64_t width;              // E; a multiple of 8 where there is dropout
  float eps;
  bool plain;                 // z is given, nothing is added
  bool centred;               // LayerNorm; else RMSNorm, without the mean
  uint64_t rng_key;
  uint32_t site;
  uint32_t drop_below;        // 0: no dropout; the bits are those of the op dropout
};

// The sums over rows that backward makes, [width] each, in this order: of weight, bias, input_bias.
constexpr int kResidualNormSums = 3;

struct ResidualNormKernels {
  // Rows [first, last).
  void (*forward_f32)(const ResidualNormParams& p, int64_t first, int64_t last);
  void (*forward_bf16)(const ResidualNormParams& p, int64_t first, int64_t last);
  // The same; adds to sums [kResidualNormSums, E].
  void (*backward_f32)(const ResidualNormParams& p, int64_t first, int64_t last, float* sums);
  void (*backward_bf16)(const ResidualNormParams& p, int64_t first, int64_t last, float* sums);
};

extern const ResidualNormKernels residual_norm_kernels_default;
extern const ResidualNormKernels residual_norm_kernels_avx2;
extern const ResidualNormKernels residual_norm_kernels_avx512;

}  // namespace tunecore
