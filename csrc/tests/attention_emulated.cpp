// The attention kernels over emulated pairs and tiles.
#define TUNECORE_ISA emulated
#include "emulated_bf16.h"

namespace tunecore {
extern const struct AttentionKernels attention_kernels_emulated;
}

#define TUNECORE_TILES
#include "../attention/attention_cpu.inc"
