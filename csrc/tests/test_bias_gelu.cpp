// gelu(x + bias) and its gradients against the standard library in double precision, every variant.
#include "../bias_gelu/bias_gelu_cpu.h"
#include "bf16.h"
#include "check.h"
#include "variants.h"

using namespace tunecore;

namespace {

double gelu(double x, bool tanh) {
  if (tanh) return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
}

double slope(double x, bool tanh) {
  if (!tanh) return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
  const double t = std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

void against_double(int64_t rows, int64_t width, bool tanh, bool half) {
  tests::Numbers numbers(7);
  const size_t count = size_t(rows * width);
  std::vector<float> x = numbers.vector(count, 6.0f), dout = numbers.vector(count), bias = numbers.vector(size_t(width));
  std::vector<float> out(count), dx(count), dbias(size_t(width), 99.0f);
  std::vector<uint16_t> x16(count), dout16(count), bias16(bias.size()), out16(count), dx16(count);
  if (half)
    for (auto [from, to] : {std::pair{&x, &x16}, {&dout, &dout16}, {&bias, &bias16}})
      for (size_t n = 0; n < from->size(); ++n) {
        (*to)[n] = tests::to_bf16((*from)[n]);
        (*from)[n] = tests::from_bf16((*to)[n]);
      }
  const auto pick = [half](auto& wide, auto& narrow) -> void* {
    return half ? static_cast<void*>(narrow.data()) : static_cast<void*>(wide.data());
  };
  BiasGeluParams p{pick(x, x16), pick(bias, bias16), pick(dout, dout16), pick(out, out16), width, tanh};
  const BiasGeluType type = half ? BiasGeluType::bf16 : BiasGeluType::f32;
  bias_gelu_forward_cpu(p, type, rows, 3);
  p.out_TF = pick(dx, dx16);
  bias_gelu_backward_cpu(p, type, rows, dbias.data(), 2);
  const double rounding = half ? 4e-3 : 1e-6;
  for (int64_t f = 0; f < width; ++f) {
    double sum = 0.0;
    for (int64_t n = f; n < int64_t(count); n += width) {
      const double z = double(x[size_t(n)]) + double(bias[size_t(f)]), d = slope(z, tanh) * double(dout[size_t(n)]);
      const float got = half ? tests::from_bf16(out16[size_t(n)]) : out[size_t(n)];
      const float got_dx = half ? tests::from_bf16(dx16[size_t(n)]) : dx[size_t(n)];
      CHECK_NEAR(got, gelu(z, tanh), rounding * (1e-3 + std::fabs(z)));
      CHECK_NEAR(got_dx, d, rounding * 1.2);
      sum += d;
    }
    CHECK_NEAR(dbias[size_t(f)], sum, 1e-6 * double(rows + 1));
  }
}

}  // namespace

TEST(bias_gelu_matches_double) {
  tests::for_each_variant([] {
    for (bool tanh : {false, true})
      for (bool half : {false, true})
        for (auto [rows, width] : {std::pair{1, 1}, {3, 5}, {70, 64}, {100, 37}}) against_double(rows, width, tanh, half);
  });
}
