// Vector trait of AVX-512 (f, bw, vl, dq): sixteen floats a vector. The members are those of isa_default.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "exp2.h"

namespace tunecore {
namespace {

struct IsaAvx512 {
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;
  using F = __m512;
  using M = __mmask16;

  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* x) { return _mm512_loadu_ps(x); }
  static F load(const uint16_t* x) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store(float* x, F value) { _mm512_storeu_ps(x, value); }
  static void store(uint16_t* x, F value) {
    const __m512i bits = _mm512_castps_si512(value), top = _mm512_srli_epi32(bits, 16);
    const __m512i even = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_or_epi32(rounded, nan, top, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(out));
  }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F sqrt(F x) { return _mm512_sqrt_ps(x); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
  static M between(int64_t first, int64_t lo, int64_t hi) {
    return M(below(hi - first) & ~below(lo - first));
  }
  static M bits(const uint32_t* words, int64_t first) { return M(words[first >> 5] >> (first & 31)); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static float max_of(F x) { return _mm512_reduce_max_ps(x); }

  static F exp2(F x) {
    x = max(set(-160.0f), x);
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = x - n;
    return _mm512_scalef_ps(exp2_fraction<IsaAvx512>(f), n);
  }

  static void transpose(F (&x)[kLanes]) {
    F y[kLanes];
    for (int i = 0; i < 16; i += 2) {
      y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44);
      x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xEE);
      x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44);
      x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {  // x[4g + i] holds rows 4g .. 4g+3 of column i of each group of four columns
      y[i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88);
      y[4 + i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xDD);
      y[8 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88);
      y[12 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0x88);
      x[8 + i] = _mm512_shuffle_f32x4(y[i], y[8 + i], 0xDD);
      x[4 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0x88);
      x[12 + i] = _mm512_shuffle_f32x4(y[4 + i], y[12 + i], 0xDD);
    }
  }

  static void keep(uint32_t k0, uint32_t k1, uint32_t block, uint32_t i, uint32_t h, uint32_t row, uint32_t threshold,
                   uint32_t* words) {
    // Counter lanes are permuted so that the transposed words come out in the order of the elements.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i c[4] = {_mm512_add_epi32(_mm512_set1_epi32(int32_t(block)), order), _mm512_set1_epi32(int32_t(i)),
                    _mm512_set1_epi32(int32_t(h)), _mm512_set1_epi32(int32_t(row))};
    philox(k0, k1, c);
    const __m512i a = _mm512_unpacklo_epi32(c[0], c[1]), b = _mm512_unpackhi_epi32(c[0], c[1]);
    const __m512i d = _mm512_unpacklo_epi32(c[2], c[3]), e = _mm512_unpackhi_epi32(c[2], c[3]);
    const __m512i least = _mm512_set1_epi16(int16_t(threshold));
    words[0] = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(a, d), least);
    words[1] = _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(a, d), least);
    words[2] = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(b, e), least);
    words[3] = _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(b, e), least);
  }

 private:
  static uint32_t below(int64_t count) {  // the lowest `count` of sixteen bits
    return count <= 0 ? 0u : count >= 16 ? 0xFFFFu : (1u << count) - 1u;
  }
  static void multiply(__m512i x, uint32_t by, __m512i* high, __m512i* low) {
    const __m512i m = _mm512_set1_epi32(int32_t(by));
    const __m512i even = _mm512_mul_epu32(x, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mullo_epi32(x, m);
  }
  static void philox(uint32_t k0, uint32_t k1, __m512i (&c)[4]) {
    for (int round = 0; round < 10; ++round) {
      __m512i high0, low0, high2, low2;
      multiply(c[0], 0xD2511F53u, &high0, &low0);
      multiply(c[2], 0xCD9E8D57u, &high2, &low2);
      c[0] = _mm512_ternarylogic_epi32(high2, c[1], _mm512_set1_epi32(int32_t(k0)), 0x96);
      c[1] = low2;
      c[2] = _mm512_ternarylogic_epi32(high0, c[3], _mm512_set1_epi32(int32_t(k1)), 0x96);
      c[3] = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

}  // namespace
}  // namespace tunecore
