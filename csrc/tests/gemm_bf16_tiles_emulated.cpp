// The product of bf16 over emulated tiles.
#define TUNECORE_ISA emulated_tiles
#include "emulated_bf16.h"

namespace tunecore {
extern const struct GemmBf16Kernels gemm_bf16_kernels_emulated_tiles;
}

#include "../gemm_bf16/gemm_bf16_tiles.inc"
