// The norm of a sum on a GPU. All pointers are to memory of `device`.
#pragma once
#include "residual_norm.h"

namespace tunecore::cuda {

struct ResidualNormCuda {
  ResidualNormParams p;  // x, z and their kin float, bf16 or f16
  const uint64_t* rng_key;  // where drop_below is not 0, read in place of p.rng_key, so that no host waits for it
  int64_t rows;
  float* sums_3E;        // backward: written, as the CPU's sums
  float* parts_B3E;      // backward: scratch, B = tunecore_cuda_residual_norm_parts(rows)
  int32_t device;
  int32_t dtype;
};

constexpr int64_t kResidualNormMostWidth = 8192;
constexpr int64_t kResidualNormMostUneven = 4096;  // of rows that are no whole packs of eight aligned elements

}  // namespace tunecore::cuda

extern "C" int64_t tunecore_cuda_residual_norm_parts(int64_t rows);
extern "C" const char* tunecore_cuda_residual_norm_forward(const tunecore::cuda::ResidualNormCuda* c, void* stream);
extern "C" const char* tunecore_cuda_residual_norm_backward(const tunecore::cuda::ResidualNormCuda* c, void* stream);
