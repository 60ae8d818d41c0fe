#define TUNECORE_ISA avx2
#include "../common/cpu/isa_avx2.h"
#include "../common/cpu/products.h"

namespace tunecore {
namespace {
using Isa = IsaAvx2;
using UnitOfBf16 = FloatUnit<Isa>;
}  // namespace
}  // namespace tunecore

#include "attention_cpu.inc"
