// Vector trait of any machine: four floats a vector, by the compiler's own vector types.
//
// Every trait has the same members (README.md lists them); `F` takes + - * and a comparison with itself as it stands.
// Internal linkage: a per-ISA file includes one trait.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../philox.h"
#include "exp2.h"

namespace tunecore {
namespace {

struct IsaDefault {
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 2;  // widest tile of products.h, in vectors; with kRows rows it fills the registers
  static constexpr int kRows = 4;
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t M __attribute__((vector_size(16)));  // all ones or zero a lane
  typedef uint32_t U __attribute__((vector_size(16)));

  static F set(float x) { return F{x, x, x, x}; }
  static F load(const float* x) {
    F out;
    memcpy(&out, x, 16);
    return out;
  }
  static F load(const uint16_t* x) {  // bf16
    const U bits = U{x[0], x[1], x[2], x[3]} << 16;
    F out;
    memcpy(&out, &bits, 16);
    return out;
  }
  static void store(float* x, F value) { memcpy(x, &value, 16); }
  static void store(uint16_t* x, F value) {
    for (int i = 0; i < kLanes; ++i) x[i] = round_to_bf16(value[i]);
  }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F sqrt(F x) {
    for (int i = 0; i < kLanes; ++i) x[i] = sqrtf(x[i]);
    return x;
  }
  static F max(F a, F b) { return a > b ? a : b; }  // b where either is NaN
  static F select(M m, F a, F b) { return m ? a : b; }
  static M between(int64_t first, int64_t lo, int64_t hi) {  // lanes first + lane in [lo, hi)
    M m;
    for (int i = 0; i < kLanes; ++i) m[i] = first + i >= lo && first + i < hi ? -1 : 0;
    return m;
  }
  static M bits(const uint32_t* words, int64_t first) {  // lane i: bit first + i; first is a multiple of kLanes
    const uint32_t w = words[first >> 5] >> (first & 31);
    return -M{int32_t(w & 1), int32_t(w >> 1 & 1), int32_t(w >> 2 & 1), int32_t(w >> 3 & 1)};
  }
  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float max_of(F x) {
    float top = x[0];
    for (int i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }

  // 2^x for x <= 1 to 2e-7 relative (0 below -126.5, or as a denormal; NaN stays NaN).
  static F exp2(F x) {
    x = max(set(-127.0f), x);
    const F shifted = x + set(12582912.0f);  // 1.5 * 2^23: the low bits are round(x)
    const F f = x - (shifted - set(12582912.0f));
    U power;
    memcpy(&power, &shifted, 16);
    power = (power - 0x4B400000u + 127u) << 23;
    F scale;
    memcpy(&scale, &power, 16);
    return exp2_fraction<IsaDefault>(f) * scale;
  }

  // A 4 x 4 transpose of 32-bit lanes.
  static void transpose(F (&x)[kLanes]) {
    F y[kLanes];
    for (int i = 0; i < kLanes; ++i) y[i] = F{x[0][i], x[1][i], x[2][i], x[3][i]};
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }

  // Bits of 128 adjacent elements, the first of them 8 * block: 1 where its 16 random bits are at least `threshold`.
  static void keep(uint32_t k0, uint32_t k1, uint32_t block, uint32_t i, uint32_t h, uint32_t row, uint32_t threshold,
                   uint32_t* words) {
    for (int w = 0; w < 4; ++w) {
      uint32_t kept = 0;
      for (int b = 0; b < 4; ++b) {
        const Philox4 r = philox4x32_10(k0, k1, block + uint32_t(4 * w + b), i, h, row);
        for (int lane = 0; lane < 8; ++lane) {
          const uint32_t drawn = r.w[lane >> 1] >> (16 * (lane & 1)) & 0xFFFFu;
          kept |= uint32_t(drawn >= threshold) << (8 * b + lane);
        }
      }
      words[w] = kept;
    }
  }

 private:
  // To nearest even; a NaN keeps a mantissa bit, so that it stays one.
  static uint16_t round_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return uint16_t((bits >> 16) | 0x40u);
    return uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  }
};

}  // namespace
}  // namespace tunecore
