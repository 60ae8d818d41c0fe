// The whole product on the CPU. Bit-identical for any number of threads.
#pragma once
#include "gemm_bf16.h"

namespace tunecore {

// The variant of the capability in use; NULL where it has no products of bf16.
const GemmBf16Kernels* gemm_bf16_kernels();

void gemm_bf16_cpu(const GemmBf16Params& params, int threads, const GemmBf16Kernels& kernels);

}  // namespace tunecore
