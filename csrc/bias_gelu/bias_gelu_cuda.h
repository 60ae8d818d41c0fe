// gelu(x + bias) on a GPU. All pointers are to memory of `device`.
#pragma once
#include "bias_gelu.h"

namespace tunecore::cuda {

struct BiasGeluCuda {
  BiasGeluParams p;  // float, bf16 or f16
  int64_t rows;
  float* dbias_F;   // backward: written, or null
  float* parts_BF;  // backward with dbias: scratch, B = tunecore_cuda_bias_gelu_parts(rows)
  int32_t device;
  int32_t dtype;
};

}  // namespace tunecore::cuda

extern "C" int64_t tunecore_cuda_bias_gelu_parts(int64_t rows);
extern "C" const char* tunecore_cuda_bias_gelu_forward(const tunecore::cuda::BiasGeluCuda* c, void* stream);
extern "C" const char* tunecore_cuda_bias_gelu_backward(const tunecore::cuda::BiasGeluCuda* c, void* stream);
