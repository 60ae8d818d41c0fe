#define TUNECORE_ISA avx512_bf16
#include "../common/cpu/products.h"
#include "../common/cpu/units_bf16.h"

namespace tunecore {
namespace {
using Isa = IsaAvx512;
using UnitOfBf16 = Bf16Unit;
}  // namespace
}  // namespace tunecore

#include "attention_cpu.inc"
