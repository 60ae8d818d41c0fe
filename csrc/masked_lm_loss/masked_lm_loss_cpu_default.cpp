#define TUNECORE_ISA default
#include "masked_lm_loss_cpu.inc"
