// All tensors on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include <vector>

#include "adamw.h"

namespace tunecore {

void adamw_cpu(const std::vector<AdamWTensor>& tensors, const AdamWParams& params, int threads);

}  // namespace tunecore
