#define TUNECORE_ISA avx2
#include "../common/cpu/isa_avx2.h"

namespace tunecore {
namespace {
using Isa = IsaAvx2;
}  // namespace
}  // namespace tunecore

#include "gemm_cpu.inc"
