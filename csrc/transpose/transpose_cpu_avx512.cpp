#define TUNECORE_ISA avx512
#include "../common/cpu/isa_avx512.h"

namespace tunecore {
namespace {

// Interleaved pairs of rows are units of 32 bits, whose transpose has the elements of a column in order. Rows are read a
// cache line at once: at a stride that is a power of two, all of them fall into few sets of the cache.
struct Block {
  static constexpr int64_t kRows = 32, kColumns = 32;

  static void transpose(const uint16_t* x, int64_t stride, uint16_t* out, int64_t out_stride) {
    __m512 low[16], high[16];  // columns 8 n + 0..3, and 8 n + 4..7
    for (int64_t i = 0; i < 16; ++i) {
      const __m512i even = _mm512_loadu_si512(x + 2 * i * stride), odd = _mm512_loadu_si512(x + (2 * i + 1) * stride);
      low[i] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(even, odd));
      high[i] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(even, odd));
    }
    IsaAvx512::transpose(low);
    IsaAvx512::transpose(high);
    for (int64_t i = 0; i < 16; ++i) {
      uint16_t* const column = out + (i / 4 * 8 + i % 4) * out_stride;
      _mm512_storeu_si512(column, _mm512_castps_si512(low[i]));
      _mm512_storeu_si512(column + 4 * out_stride, _mm512_castps_si512(high[i]));
    }
  }
};

}  // namespace
}  // namespace tunecore

#include "transpose_cpu.inc"
