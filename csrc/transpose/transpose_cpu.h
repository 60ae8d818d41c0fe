// A whole matrix on the CPU: strips of columns over threads, variant by capability.
#pragma once
#include "transpose.h"

namespace tunecore {

void transpose_cpu(const TransposeParams& params, int threads);

}  // namespace tunecore
