#define TUNECORE_ISA avx512
#include "../common/cpu/isa_avx512.h"
#include "../common/cpu/products.h"

namespace tunecore {
namespace {
using Isa = IsaAvx512;
using UnitOfBf16 = FloatUnit<Isa>;
}  // namespace
}  // namespace tunecore

#include "attention_cpu.inc"
