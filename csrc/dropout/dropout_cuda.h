// Dropout by counter on a GPU. All pointers are to memory of `device`.
#pragma once
#include "dropout.h"

namespace tunecore::cuda {

struct DropoutCuda {
  DropoutParams p;  // x and out float, bf16 or f16; out may be x
  const uint64_t* rng_key;  // read in place of p.rng_key, so that no host waits for it
  int32_t device;
  int32_t dtype;
};

}  // namespace tunecore::cuda

extern "C" const char* tunecore_cuda_dropout(const tunecore::cuda::DropoutCuda* c, void* stream);
