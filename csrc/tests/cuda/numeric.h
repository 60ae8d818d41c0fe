// Elements of every type a kernel takes, and what their rounding may cost.
#pragma once
#include "../../common/cuda/entry.h"
#include "../../common/cuda/numbers.h"
#include "machine.h"

namespace tunecore::tests {

template <class T>
constexpr cuda::DType kDType = std::is_same_v<T, float> ? cuda::DType::f32
                               : std::is_same_v<T, cuda::bf16> ? cuda::DType::bf16
                                                               : cuda::DType::f16;
// Of one rounding, relative.
template <class T>
constexpr double kUnit = std::is_same_v<T, float> ? 6e-8 : std::is_same_v<T, cuda::bf16> ? 1.0 / 256 : 1.0 / 2048;

template <class T>
std::vector<T> rounded(const std::vector<float>& x) {
  std::vector<T> out;
  for (float value : x) out.push_back(cuda::from_float<T>(value));
  return out;
}

template <class T>
double number(T x) {
  return double(cuda::to_float(x));
}

// body(T{}) for float, bf16 and f16.
template <class Body>
void for_each_type(const Body& body) {
  body(float{}), body(cuda::bf16{}), body(cuda::f16{});
}

}  // namespace tunecore::tests
