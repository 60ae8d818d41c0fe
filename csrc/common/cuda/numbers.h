// bfloat16 and float16 of our own, and their conversions: rounded to nearest even, a NaN stays one.
#pragma once
#include <string.h>

#include "memory.h"

namespace tunecore::cuda {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }

template <class T>
struct Rounded;  // Rounded<T>::of(float) -> T

template <>
struct Rounded<float> {
  static __device__ __forceinline__ float of(float x) { return x; }
};

#ifdef __CUDACC__

__device__ __forceinline__ float to_float(f16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}

template <>
struct Rounded<bf16> {
  static __device__ __forceinline__ bf16 of(float x) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
  }
};

template <>
struct Rounded<f16> {
  static __device__ __forceinline__ f16 of(float x) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
  }
};

#else

inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, fraction = x.bits & 0x3FFu;
  if (exponent == 31) return float_of(sign | 0x7F800000u | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  return float_of(sign | bits_of(float(fraction) * 5.9604644775390625e-8f));  // 2^-24
}

template <>
struct Rounded<bf16> {
  static bf16 of(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
    return {uint16_t((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
  }
};

template <>
struct Rounded<f16> {
  static f16 of(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return {0x7FFF};
    if (size >= 0x477FF000u) return {uint16_t(sign | 0x7C00u)};  // 65520 and more
    if (size < 0x38800000u)                                      // below 2^-14: steps of 2^-24
      return {uint16_t(sign | uint32_t(rintf(float_of(size) * 16777216.0f)))};
    return {uint16_t(sign | (size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13)};
  }
};

#endif

template <class T>
__device__ __forceinline__ T from_float(float x) {
  return Rounded<T>::of(x);
}

// x as it comes back from memory.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

#ifdef __CUDACC__

// Two elements in a register of a fragment, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high);

template <>
__device__ __forceinline__ uint32_t pair_of<bf16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

template <>
__device__ __forceinline__ uint32_t pair_of<f16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// 2**x within two units of the last place; 0 where the result is below the normal numbers.
__device__ __forceinline__ float exp2_approximately(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

#else

template <class T>
inline uint32_t pair_of(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}

inline float exp2_approximately(float x) { return exp2f(x); }

#endif

}  // namespace tunecore::cuda
