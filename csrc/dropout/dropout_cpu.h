// The whole tensor on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include "dropout.h"

namespace tunecore {

enum class DropoutType { f32, bf16 };

void dropout_cpu(const DropoutParams& params, DropoutType type, int threads);

}  // namespace tunecore
