// The norm of a sum and its gradients against double precision, and its dropout against the words of philox.h.
#include "../../residual_norm/residual_norm_cuda.h"
#include "../dropout_words.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::kept;
using tests::number;

namespace {

struct Case {
  int64_t rows, width;
  bool centred, plain;
  uint32_t drop_below;
  int64_t shift = 0;  // elements by which every tensor misses its alignment
};

template <class T>
struct Problem {
  using Values = std::vector<T>;
  const Case of;
  const size_t E, count, before;
  Values x, residual, dy, input_bias, weight, bias;
  Buffer<T> x_TE, residual_TE, dy_TE, input_bias_E, weight_E, bias_E, z_TE, y_TE, dz_TE, dx_TE;
  Buffer<float> stats, sums, parts;
  Buffer<uint64_t> rng_key;
  ResidualNormCuda c{};

  Values values(tests::Numbers& numbers, size_t n) { return tests::rounded<T>(numbers.vector(n + before)); }

  explicit Problem(const Case& given, tests::Numbers numbers = tests::Numbers(11))
      : of(given), E(size_t(of.width)), count(size_t(of.rows) * E), before(size_t(of.shift)),
        x(values(numbers, count)), residual(values(numbers, count)), dy(values(numbers, count)),
        input_bias(values(numbers, E)), weight(values(numbers, E)), bias(values(numbers, E)),
        x_TE(Buffer<T>::input("x", x)), residual_TE(Buffer<T>::input("residual", residual)),
        dy_TE(Buffer<T>::input("dy", dy)), input_bias_E(Buffer<T>::input("input_bias", input_bias)),
        weight_E(Buffer<T>::input("weight", weight)), bias_E(Buffer<T>::input("bias", bias)),
        z_TE(Buffer<T>::output("z", count + before, before)), y_TE(Buffer<T>::output("y", count + before, before)),
        dz_TE(Buffer<T>::output("dz", count + before, before)), dx_TE(Buffer<T>::output("dx", count + before, before)),
        stats(Buffer<float>::output("stats", 2 * size_t(of.rows))), sums(Buffer<float>::output("sums", 3 * E)),
        parts(Buffer<float>::output("parts", size_t(tunecore_cuda_residual_norm_parts(of.rows)) * 3 * E)),
        rng_key(Buffer<uint64_t>::input("rng_key", {0xFEDCBA9876543210ull})) {
    ResidualNormParams& p = c.p;
    if (!of.plain) p.x_TE = x_TE.data() + before, p.residual_TE = residual_TE.data() + before;
    if (!of.plain) p.input_bias_E = input_bias_E.data() + before;
    p.z_TE = of.plain ? x_TE.data() + before : z_TE.data() + before;
    p.weight_E = weight_E.data() + before, p.bias_E = of.centred ? bias_E.data() + before : nullptr;
    p.y_TE = y_TE.data() + before, p.stats_T2 = stats.data(), p.dy_TE = dy_TE.data() + before;
    p.dz_TE = dz_TE.data() + before, p.dx_TE = of.drop_below ? dx_TE.data() + before : nullptr;
    p.width = of.width, p.eps = 1e-3f, p.plain = of.plain, p.centred = of.centred;
    p.rng_key = rng_key[0], p.site = 5, p.drop_below = of.drop_below;
    c.rng_key = rng_key.data(), c.rows = of.rows, c.sums_3E = sums.data(), c.parts_B3E = parts.data();
    c.dtype = int32_t(tests::kDType<T>);
  }

  void run() {
    CHECK(tests::ran(tunecore_cuda_residual_norm_forward, c));
    CHECK(tests::ran(tunecore_cuda_residual_norm_backward, c));
  }

  // Element i of a tensor that begins behind the shift.
  double at(const Values& v, size_t i) const { return number(v[before + i]); }
  double at(const Buffer<T>& v, size_t i) const { return number(v[before + i]); }

  void check_row(int64_t row, std::vector<double>& wanted_sums) const {
    const ResidualNormParams& p = c.p;
    const double keep_scale = 65536.0 / (65536 - double(of.drop_below)), unit = tests::kUnit<T>;
    std::vector<double> n(E), g(E);
    double mean = 0, square = 0, g_mean = 0, gn_mean = 0;
    for (size_t e = 0; e < E; ++e) {
      const size_t i = size_t(row) * E + e;
      double z = at(x, i);
      if (!of.plain) z = (kept(p, int64_t(i)) ? (z + at(input_bias, e)) * keep_scale : 0.0) + at(residual, i);
      if (!of.plain) CHECK_NEAR(at(z_TE, i), z, 2e-6 + unit * std::fabs(z));
      n[e] = of.plain ? z : at(z_TE, i);  // what is normalised is the rounded sum
      mean += of.centred ? n[e] / double(E) : 0.0;
    }
    for (size_t e = 0; e < E; ++e) square += (n[e] - mean) * (n[e] - mean) / double(E);
    const double scale = 1 / std::sqrt(square + double(p.eps));
    for (size_t e = 0; e < E; ++e) {
      const size_t i = size_t(row) * E + e;
      n[e] = (n[e] - mean) * scale;
      const double y = n[e] * at(weight, e) + (of.centred ? at(bias, e) : 0.0);
      CHECK_NEAR(at(y_TE, i), y, 2e-5 + unit * std::fabs(y));
      g[e] = at(dy, i) * at(weight, e);
      g_mean += of.centred ? g[e] / double(E) : 0.0;
      gn_mean += g[e] * n[e] / double(E);
      wanted_sums[e] += at(dy, i) * n[e];
      wanted_sums[E + e] += at(dy, i);
    }
    for (size_t e = 0; e < E; ++e) {
      const size_t i = size_t(row) * E + e;
      const double d = scale * (g[e] - g_mean - n[e] * gn_mean);
      const double through = kept(p, int64_t(i)) ? d * keep_scale : 0.0;
      CHECK_NEAR(at(dz_TE, i), d, 2e-5 * scale + unit * std::fabs(d));
      if (of.drop_below) CHECK_NEAR(at(dx_TE, i), through, 4e-5 * scale + unit * std::fabs(through));
      wanted_sums[2 * E + e] += through;
    }
  }
};

template <class T>
void against_double(const Case& of) {
  Problem<T> problem(of);
  problem.run();
  std::vector<double> wanted(3 * problem.E);
  for (int64_t row = 0; row < of.rows; ++row) problem.check_row(row, wanted);
  for (size_t i = 0; i < wanted.size(); ++i) CHECK_NEAR(problem.sums[i], wanted[i], 1e-4 * double(of.rows + 1));
}

}  // namespace

TEST(cuda_residual_norm_matches_double) {
  tests::in_every_order([] {
    tests::for_each_type([](auto zero) {
      using T = decltype(zero);
      for (const bool centred : {true, false}) {
        for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 8}, {3, 24}, {2, 1040}}) {
          against_double<T>({rows, width, centred, false, 20000});
          against_double<T>({rows, width, centred, true, 0});
        }
        against_double<T>({5, 37, centred, false, 0});  // rows that are no whole packs
        against_double<T>({2, 5, centred, true, 0});
        against_double<T>({3, 40, centred, false, 9000, 1});  // tensors that begin at no multiple of 16 bytes
      }
    });
  });
}

TEST(cuda_residual_norm_in_wide_rows_and_many_rows) {
  against_double<bf16>({2, 4104, true, false, 6554});  // one pack a thread
  against_double<float>({1, 8192, false, true, 0});
  against_double<float>({1031, 8, true, false, 6554});  // more rows than blocks
}

TEST(cuda_residual_norm_does_not_depend_on_the_order_of_threads) {
  std::vector<float> first;
  tests::in_every_order([&] {
    Problem<bf16> problem({70, 520, true, false, 6554});
    problem.run();
    const std::vector<float> sums = problem.sums.values();
    if (first.empty()) first = sums;
    CHECK(sums == first);
  });
}

TEST(cuda_residual_norm_refuses_what_it_cannot_do) {
  Problem<float> uneven({1, 12, true, false, 0});
  uneven.c.p.drop_below = 1;
  CHECK(tests::has(tests::failure_of(tunecore_cuda_residual_norm_forward, uneven.c), "rows of a multiple of 8"));
  uneven.c.p.width = 4100;
  CHECK(tests::has(tests::failure_of(tunecore_cuda_residual_norm_forward, uneven.c), "must be multiples of 8"));
  uneven.c.p.width = 8200;
  CHECK(tests::has(tests::failure_of(tunecore_cuda_residual_norm_forward, uneven.c), "more than 8192"));
}
