// Parameters of the probes. L is the lane, 32 of them; registers are as in tensor_core.h.
#pragma once
#include <stdint.h>

namespace tunecore::cuda {

struct MmaProbe {
  const uint32_t* a_L4;
  const uint32_t* b_L2;
  float* d_L4;  // added to
  int32_t device;
  int32_t dtype;  // bf16 or f16
};

struct LdmatrixProbe {
  const uint16_t* rows_L8;  // row r of tile i is that of lane 8 i + r
  uint32_t* r_LN;           // N = tiles
  int32_t device;
  int32_t tiles;  // 1, 2 or 4
  int32_t transposed;
};

}  // namespace tunecore::cuda

extern "C" const char* tunecore_cuda_probe_mma(const tunecore::cuda::MmaProbe* p, void* stream);
extern "C" const char* tunecore_cuda_probe_ldmatrix(const tunecore::cuda::LdmatrixProbe* p, void* stream);
