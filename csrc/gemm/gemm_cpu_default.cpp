#define TUNECORE_ISA default
#include "../common/cpu/isa_default.h"

namespace tunecore {
namespace {
using Isa = IsaDefault;
}  // namespace
}  // namespace tunecore

#include "gemm_cpu.inc"
