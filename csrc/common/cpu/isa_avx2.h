// Vector trait of AVX2 with FMA: eight floats a vector. The members are those of isa_default.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "exp2.h"

namespace tunecore {
namespace {

struct IsaAvx2 {
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 6;
  using F = __m256;
  using M = __m256i;

  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* x) { return _mm256_loadu_ps(x); }
  static F load(const uint16_t* x) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store(float* x, F value) { _mm256_storeu_ps(x, value); }
  static void store(uint16_t* x, F value) {
    const __m256i bits = _mm256_castps_si256(value), top = _mm256_srli_epi32(bits, 16);
    const __m256i even = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i out = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(out, out), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_castsi256_si128(packed));
  }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F sqrt(F x) { return _mm256_sqrt_ps(x); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m)); }
  static M between(int64_t first, int64_t lo, int64_t hi) {
    const __m256i lane = _mm256_add_epi32(_mm256_set1_epi32(int32_t(first)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(hi)), lane);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(lo)), lane), below);
  }
  static M bits(const uint32_t* words, int64_t first) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(int32_t(words[first >> 5] >> (first & 31)));
    return _mm256_cmpeq_epi32(_mm256_and_si256(all, each), each);
  }
  static float sum(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static float max_of(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }

  static F exp2(F x) {
    x = max(set(-127.0f), x);
    const F n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = x - n;
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return exp2_fraction<IsaAvx2>(f) * _mm256_castsi256_ps(power);
  }

  static void transpose(F (&x)[kLanes]) {
    F y[kLanes];
    for (int i = 0; i < 8; i += 2) {
      y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    F z[kLanes];
    for (int i = 0; i < 8; i += 4) {
      z[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
      z[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xEE);
      z[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
      z[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2f128_ps(z[i], z[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(z[i], z[i + 4], 0x31);
    }
  }

  static void keep(uint32_t k0, uint32_t k1, uint32_t block, uint32_t i, uint32_t h, uint32_t row, uint32_t threshold,
                   uint32_t* words) {
    // Counter lanes are permuted so that the transposed words come out in the order of the elements.
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (int half = 0; half < 2; ++half) {
      __m256i c[4] = {_mm256_add_epi32(_mm256_set1_epi32(int32_t(block + uint32_t(8 * half))), order),
                      _mm256_set1_epi32(int32_t(i)), _mm256_set1_epi32(int32_t(h)), _mm256_set1_epi32(int32_t(row))};
      philox(k0, k1, c);
      const __m256i a = _mm256_unpacklo_epi32(c[0], c[1]), b = _mm256_unpackhi_epi32(c[0], c[1]);
      const __m256i d = _mm256_unpacklo_epi32(c[2], c[3]), e = _mm256_unpackhi_epi32(c[2], c[3]);
      const __m256i t[4] = {_mm256_unpacklo_epi64(a, d), _mm256_unpackhi_epi64(a, d), _mm256_unpacklo_epi64(b, e),
                            _mm256_unpackhi_epi64(b, e)};
      words[2 * half] = at_least(t[0], threshold) | at_least(t[1], threshold) << 16;
      words[2 * half + 1] = at_least(t[2], threshold) | at_least(t[3], threshold) << 16;
    }
  }

 private:
  static uint32_t at_least(__m256i lanes16, uint32_t threshold) {
    const __m256i least = _mm256_set1_epi16(int16_t(threshold));
    const __m256i kept = _mm256_cmpeq_epi16(_mm256_max_epu16(lanes16, least), lanes16);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
    return uint32_t(_mm_movemask_epi8(bytes));
  }
  // The high and low halves of 32 x 32 bit products, lane by lane.
  static void multiply(__m256i x, uint32_t by, __m256i* high, __m256i* low) {
    const __m256i m = _mm256_set1_epi32(int32_t(by));
    const __m256i even = _mm256_mul_epu32(x, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), m);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  }
  static void philox(uint32_t k0, uint32_t k1, __m256i (&c)[4]) {
    for (int round = 0; round < 10; ++round) {
      __m256i high0, low0, high2, low2;
      multiply(c[0], 0xD2511F53u, &high0, &low0);
      multiply(c[2], 0xCD9E8D57u, &high2, &low2);
      c[0] = _mm256_xor_si256(_mm256_xor_si256(high2, c[1]), _mm256_set1_epi32(int32_t(k0)));
      c[1] = low2;
      c[2] = _mm256_xor_si256(_mm256_xor_si256(high0, c[3]), _mm256_set1_epi32(int32_t(k1)));
      c[3] = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

}  // namespace
}  // namespace tunecore
