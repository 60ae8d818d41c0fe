#define TUNECORE_ISA amx_bf16
#include "../common/cpu/tiles_amx.h"

namespace tunecore {
namespace {
using TilesOfBf16 = AmxUnit;
}  // namespace
}  // namespace tunecore

#include "gemm_bf16_tiles.inc"
