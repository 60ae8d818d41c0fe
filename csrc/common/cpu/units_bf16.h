// Units of two bf16 for products.h, multiplied by AVX-512's vdpbf16ps. Storage is uint16_t.
#pragma once
#include <string.h>

#include "isa_avx512.h"

namespace tunecore {
namespace {

struct Bf16Unit {
  using Isa = IsaAvx512;
  using F = __m512;  // carries bits
  static constexpr int kPair = 2, kStep = Isa::kLanes, kRowStep = 1;

  static F broadcast(const char* a) {
    int32_t x;
    memcpy(&x, a, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(x));
  }
  static F load(const uint32_t* b) { return Isa::load(reinterpret_cast<const float*>(b)); }
  static void store(uint32_t* b, F units) { Isa::store(reinterpret_cast<float*>(b), units); }
  static F dot(F sum, F a, F b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static F along(const uint16_t* row, int64_t first, int64_t count) {
    const __mmask16 there = count >= 16 ? __mmask16(0xFFFF) : __mmask16((1u << count) - 1u);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(there, row + first));
  }
  static F across(const uint16_t* const* rows, int64_t first) {
    const __m512i low = widen(rows[0] + first), high = widen(rows[1] + first);
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static void put(char* row, int64_t first, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row) + first / 16, (__m256i)_mm512_cvtneps_pbh(x));
  }
  static void put_across(uint32_t* units, const F* rows) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(rows[1], rows[0]);
    _mm512_storeu_si512(units, _mm512_permutexvar_epi16(interleave, both));
  }

 private:
  static __m512i widen(const uint16_t* x) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
};

}  // namespace
}  // namespace tunecore
