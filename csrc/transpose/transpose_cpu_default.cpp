#define TUNECORE_ISA default
#include <stdint.h>

namespace tunecore {
namespace {

struct Block {
  static constexpr int64_t kRows = 16, kColumns = 16;

  static void transpose(const uint16_t* x, int64_t stride, uint16_t* out, int64_t out_stride) {
    for (int64_t c = 0; c < kColumns; ++c)
      for (int64_t r = 0; r < kRows; ++r) out[c * out_stride + r] = x[r * stride + c];
  }
};

}  // namespace
}  // namespace tunecore

#include "transpose_cpu.inc"
