// AdamW on a GPU, many tensors a launch. The pointers of the tensors are to memory of `device`; the list is the host's.
#pragma once
#include "adamw.h"

namespace tunecore::cuda {

struct AdamWCuda {
  const AdamWTensor* tensors;
  int64_t count;
  AdamWParams p;
  int32_t device;
};

}  // namespace tunecore::cuda

extern "C" const char* tunecore_cuda_adamw(const tunecore::cuda::AdamWCuda* c, void* stream);
