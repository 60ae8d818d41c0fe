// The whole product on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include "gemm.h"

namespace tunecore {

void gemm_cpu(const GemmParams& params, int threads);

}  // namespace tunecore
