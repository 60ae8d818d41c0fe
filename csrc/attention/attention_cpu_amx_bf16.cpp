#define TUNECORE_ISA amx_bf16
#include "../common/cpu/tiles_amx.h"

namespace tunecore {
namespace {
using Isa = IsaAvx512;
using UnitOfBf16 = Bf16Unit;
using TilesOfBf16 = AmxUnit;
}  // namespace
}  // namespace tunecore

#define TUNECORE_TILES
#include "attention_cpu.inc"
