#define TUNECORE_ISA avx512
#include "../common/cpu/isa_avx512.h"

namespace tunecore {
namespace {
using Isa = IsaAvx512;
}  // namespace
}  // namespace tunecore

#include "gemm_cpu.inc"
