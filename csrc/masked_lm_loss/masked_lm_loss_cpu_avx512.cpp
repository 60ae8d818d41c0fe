#define TUNECORE_ISA avx512
#include "masked_lm_loss_cpu.inc"
