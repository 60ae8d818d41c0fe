#define TUNECORE_ISA default
#include "../common/cpu/isa_default.h"
#include "../common/cpu/products.h"

namespace tunecore {
namespace {
using Isa = IsaDefault;
using UnitOfBf16 = FloatUnit<Isa>;
}  // namespace
}  // namespace tunecore

#include "attention_cpu.inc"
