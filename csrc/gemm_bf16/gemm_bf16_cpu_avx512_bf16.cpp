#define TUNECORE_ISA avx512_bf16
#include "../common/cpu/units_bf16.h"

namespace tunecore {
namespace {
using UnitOfBf16 = Bf16Unit;
}  // namespace
}  // namespace tunecore

#include "gemm_bf16_vectors.inc"
