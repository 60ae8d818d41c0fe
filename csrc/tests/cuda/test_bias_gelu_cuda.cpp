// gelu(x + bias) and its gradients against double precision, tails included.
#include "../../bias_gelu/bias_gelu_cuda.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::number;

namespace {

struct Exact {
  double value, slope;
};

Exact exact(double x, bool tanh) {
  if (tanh) {
    const double root = std::sqrt(2 / M_PI), t = std::tanh(root * (x + 0.044715 * x * x * x));
    return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)};
  }
  const double below = 0.5 * std::erfc(-x / std::sqrt(2.0));
  return {x * below, below + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI)};
}

template <class T>
void against_double(int64_t rows, int64_t width, bool tanh, bool with_bias, size_t shift = 0) {
  tests::Numbers numbers(5);
  const size_t F = size_t(width), count = size_t(rows) * F;
  const auto x = tests::rounded<T>(numbers.vector(count + shift, 4.0f));
  const auto bias = tests::rounded<T>(numbers.vector(F + shift)), dout = tests::rounded<T>(numbers.vector(count + shift));
  auto x_TF = Buffer<T>::input("x", x), bias_F = Buffer<T>::input("bias", bias), dout_TF = Buffer<T>::input("dout", dout);
  auto out_TF = Buffer<T>::output("out", count + shift, shift);
  auto dx_TF = Buffer<T>::output("dx", count + shift, shift);
  auto dbias_F = Buffer<float>::output("dbias", F);
  auto parts = Buffer<float>::output("parts", size_t(tunecore_cuda_bias_gelu_parts(rows)) * F);
  BiasGeluCuda c{};
  c.p.x_TF = x_TF.data() + shift, c.p.bias_F = with_bias ? bias_F.data() + shift : nullptr;
  c.p.out_TF = out_TF.data() + shift, c.p.width = width, c.p.tanh = tanh;
  c.rows = rows, c.dtype = int32_t(tests::kDType<T>);
  CHECK(tests::ran(tunecore_cuda_bias_gelu_forward, c));
  c.p.out_TF = dx_TF.data() + shift, c.p.dout_TF = dout_TF.data() + shift;
  if (with_bias) c.dbias_F = dbias_F.data(), c.parts_BF = parts.data();
  CHECK(tests::ran(tunecore_cuda_bias_gelu_backward, c));
  std::vector<double> sums(F);
  for (size_t i = 0; i < count; ++i) {
    const double z = double(float(number(x[shift + i]) + (with_bias ? number(bias[shift + i % F]) : 0.0)));
    const Exact wanted = exact(z, tanh);
    const double dx = wanted.slope * number(dout[shift + i]);
    CHECK_NEAR(number(out_TF[shift + i]), wanted.value, 2e-6 + tests::kUnit<T> * std::fabs(wanted.value));
    CHECK_NEAR(number(dx_TF[shift + i]), dx, 2e-6 + tests::kUnit<T> * std::fabs(dx));
    sums[i % F] += dx;
  }
  for (size_t f = 0; with_bias && f < F; ++f) CHECK_NEAR(dbias_F[f], sums[f], 1e-5 * double(rows + 1));
}

// The kernel's gelu of each x, forward or backward.
std::vector<float> gelus(const std::vector<float>& x, bool tanh, bool backward) {
  auto x_TF = Buffer<float>::input("x", x), ones = Buffer<float>::input("dout", std::vector<float>(x.size(), 1.0f));
  auto out = Buffer<float>::output("out", x.size());
  BiasGeluCuda c{};
  c.p.x_TF = x_TF.data(), c.p.dout_TF = ones.data(), c.p.out_TF = out.data(), c.p.width = int64_t(x.size());
  c.p.tanh = tanh, c.rows = 1, c.dtype = int32_t(DType::f32);
  CHECK(tests::ran(backward ? tunecore_cuda_bias_gelu_backward : tunecore_cuda_bias_gelu_forward, c));
  return out.values();
}

}  // namespace

TEST(cuda_bias_gelu_matches_double) {
  tests::in_every_order([] {
    tests::for_each_type([](auto zero) {
      using T = decltype(zero);
      for (const bool tanh : {true, false}) {
        against_double<T>(1, 1, tanh, true);
        against_double<T>(3, 264, tanh, true);
        against_double<T>(19, 37, tanh, true);
        against_double<T>(2, 16, tanh, false);
        against_double<T>(2, 24, tanh, true, 3);
      }
    });
  });
}

TEST(cuda_bias_gelu_in_more_rows_than_blocks) { against_double<bf16>(1100, 8, false, true); }

TEST(cuda_gelu_keeps_far_tails_and_nan) {
  std::vector<float> x = {0.0f, 1e-30f, -1e-30f, 3e4f, -3e4f, 3e38f, -3e38f};
  for (int i = -90; i <= 90; ++i) x.push_back(float(i) / 10);
  for (const bool tanh : {true, false}) {
    const std::vector<float> value = gelus(x, tanh, false), slope = gelus(x, tanh, true);
    for (size_t i = 0; i < x.size(); ++i) {
      const Exact wanted = exact(double(x[i]), tanh);
      // Far left, tanh is 1 - tanh's own rounding: only the form by erf keeps its relative accuracy there.
      const double size = std::isfinite(wanted.value) ? std::fabs(wanted.value) : 0.0;
      CHECK_NEAR(value[i], wanted.value, tanh ? 2e-7 + 2e-7 * size : 1e-36 + 2e-5 * size);
      if (std::isfinite(wanted.slope)) CHECK_NEAR(slope[i], wanted.slope, 3e-6);
    }
    CHECK(std::isnan(gelus({NAN}, tanh, false)[0]) && std::isnan(gelus({NAN}, tanh, true)[0]));
  }
}
