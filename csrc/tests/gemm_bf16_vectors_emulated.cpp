// The product of bf16 over emulated vectors.
#define TUNECORE_ISA emulated_vectors
#include "emulated_bf16.h"

namespace tunecore {
extern const struct GemmBf16Kernels gemm_bf16_kernels_emulated_vectors;
}

#include "../gemm_bf16/gemm_bf16_vectors.inc"
