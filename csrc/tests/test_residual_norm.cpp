// The norm of a sum and its gradients against plain double-precision loops, every variant.
#include "../residual_norm/residual_norm_cpu.h"
#include "check.h"
#include "dropout_words.h"
#include "variants.h"

using namespace tunecore;
using tests::kept;

namespace {

struct Case {
  int64_t rows, width;
  bool centred;
  uint32_t drop_below;
};

void against_double(const Case& c) {
  tests::Numbers numbers(11);
  const size_t E = size_t(c.width), count = size_t(c.rows) * E;
  std::vector<float> x = numbers.vector(count), residual = numbers.vector(count), dy = numbers.vector(count);
  std::vector<float> input_bias = numbers.vector(E), weight = numbers.vector(E), bias = numbers.vector(E);
  std::vector<float> z(count), y(count), stats(2 * size_t(c.rows)), dz(count), dx(count), sums(3 * E, 99.0f);
  ResidualNormParams p{};
  p.x_TE = x.data(), p.residual_TE = residual.data(), p.input_bias_E = input_bias.data(), p.z_TE = z.data();
  p.weight_E = weight.data(), p.bias_E = bias.data(), p.y_TE = y.data(), p.stats_T2 = stats.data();
  p.dy_TE = dy.data(), p.dz_TE = dz.data(), p.dx_TE = c.drop_below ? dx.data() : nullptr;
  p.width = c.width, p.eps = 1e-3f, p.centred = c.centred;
  p.rng_key = 0xFEDCBA9876543210ull, p.site = 5, p.drop_below = c.drop_below;
  residual_norm_forward_cpu(p, ResidualNormType::f32, c.rows, 3);
  residual_norm_backward_cpu(p, ResidualNormType::f32, c.rows, sums.data(), 2);

  const double keep_scale = 65536.0 / (65536 - double(c.drop_below));
  std::vector<double> wanted(3 * E);
  for (int64_t row = 0; row < c.rows; ++row) {
    std::vector<double> s(E), n(E), g(E);
    double mean = 0, square = 0, g_mean = 0, gn_mean = 0;
    for (size_t e = 0; e < E; ++e) {
      const size_t at = size_t(row) * E + e;
      s[e] = (kept(p, int64_t(at)) ? (double(x[at]) + double(input_bias[e])) * keep_scale : 0.0) + double(residual[at]);
      mean += c.centred ? s[e] / double(E) : 0.0;
    }
    for (size_t e = 0; e < E; ++e) square += (s[e] - mean) * (s[e] - mean) / double(E);
    const double scale = 1 / std::sqrt(square + double(p.eps));
    for (size_t e = 0; e < E; ++e) {
      const size_t at = size_t(row) * E + e;
      n[e] = (s[e] - mean) * scale;
      g[e] = double(dy[at]) * double(weight[e]);
      g_mean += c.centred ? g[e] / double(E) : 0.0;
      gn_mean += g[e] * n[e] / double(E);
      CHECK_NEAR(y[at], n[e] * double(weight[e]) + double(bias[e]), 2e-5);
      wanted[e] += double(dy[at]) * n[e];
      wanted[E + e] += double(dy[at]);
    }
    for (size_t e = 0; e < E; ++e) {
      const size_t at = size_t(row) * E + e;
      const double d = scale * (g[e] - g_mean - n[e] * gn_mean);
      const double through = kept(p, int64_t(at)) ? d * keep_scale : 0.0;
      CHECK_NEAR(dz[at], d, 2e-5 * scale);
      if (c.drop_below) CHECK_NEAR(dx[at], through, 2e-5 * scale);
      wanted[2 * E + e] += through;
    }
  }
  for (size_t i = 0; i < 3 * E; ++i) CHECK_NEAR(sums[i], wanted[i], 1e-4 * double(c.rows + 1));
}

}  // namespace

TEST(residual_norm_matches_double) {
  tests::for_each_variant([] {
    for (bool centred : {true, false})
      for (uint32_t drop_below : {0u, 20000u})
        for (auto [rows, width] : {std::pair{1, 8}, {3, 24}, {70, 136}, {33, 256}})
          against_double({rows, width, centred, drop_below});
    against_double({5, 37, true, 0});
  });
}
