#define TUNECORE_ISA avx2
#include "masked_lm_loss_cpu.inc"
