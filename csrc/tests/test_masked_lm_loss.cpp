// The chunk kernel of every variant this machine runs, against a plain double-precision loop.
#include <cstring>

#include "../common/cpu/capability.h"
#include "../masked_lm_loss/masked_lm_loss_cpu.h"
#include "bf16.h"
#include "check.h"

using namespace tunecore;
using tunecore::tests::Numbers;
using tunecore::tests::from_bf16;
using tunecore::tests::to_bf16;

namespace {

const Capability kCapabilities[] = {Capability::baseline, Capability::avx2, Capability::avx512};

struct Problem {
  int64_t rows, vocab;
  std::vector<float> logits, bias;
  std::vector<int64_t> targets;

  Problem(int64_t n, int64_t v, float scale) : rows(n), vocab(v) {
    Numbers numbers(static_cast<unsigned long long>(n * 1000 + v));
    logits = numbers.vector(n * v, scale);
    bias = numbers.vector(v);
    for (int64_t i = 0; i < n; ++i) targets.push_back((i * 7919) % v);
  }

  MaskedLmLossParams params(void* data, float smoothing, float z_loss) const {
    MaskedLmLossParams p{};
    p.logits_NV = data;
    p.row_stride = p.vocab = vocab;
    p.bias_V = bias.data();
    p.targets_N = targets.data();
    p.label_smoothing = smoothing;
    p.z_loss = z_loss;
    p.gradient = true;
    return p;
  }

  // Loss and gradient in double of the logits as given.
  double exact(const std::vector<double>& x, double smoothing, double z_loss, std::vector<double>* gradient) const {
    double total = 0;
    gradient->assign(rows * vocab, 0);
    for (int64_t n = 0; n < rows; ++n) {
      double largest = -INFINITY, sum = 0, mean = 0;
      auto z = [&](int64_t v) { return x[n * vocab + v] + bias[v]; };
      for (int64_t v = 0; v < vocab; ++v) largest = std::fmax(largest, z(v));
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(z(v) - largest), mean += z(v) / vocab;
      const double lse = largest + std::log(sum);
      total += lse - (1 - smoothing) * z(targets[n]) - smoothing * mean + z_loss * lse * lse;
      for (int64_t v = 0; v < vocab; ++v)
        (*gradient)[n * vocab + v] = std::exp(z(v) - lse) * (1 + 2 * z_loss * lse) - smoothing / vocab -
                                     (v == targets[n] ? 1 - smoothing : 0);
    }
    return total;
  }
};

void compare_with_double(float smoothing, float z_loss, int64_t rows, int64_t vocab) {
  const Problem problem(rows, vocab, 12.0f);
  std::vector<double> gradient;
  const double wanted = problem.exact({problem.logits.begin(), problem.logits.end()}, smoothing, z_loss, &gradient);
  std::vector<uint16_t> half(problem.logits.size());
  std::vector<double> half_exact(half.size());
  for (size_t i = 0; i < half.size(); ++i) half_exact[i] = from_bf16(half[i] = to_bf16(problem.logits[i]));
  std::vector<double> half_gradient;
  const double half_wanted = problem.exact(half_exact, smoothing, z_loss, &half_gradient);

  std::vector<float> x = problem.logits;
  CHECK_NEAR(masked_lm_loss_cpu(problem.params(x.data(), smoothing, z_loss), LogitType::f32, rows, 2).loss, wanted,
             1e-6 * std::fabs(wanted) + 1e-6);
  for (size_t i = 0; i < x.size(); ++i) CHECK_NEAR(x[i], gradient[i], 2e-6 * (1 + std::fabs(gradient[i])));
  CHECK_NEAR(masked_lm_loss_cpu(problem.params(half.data(), smoothing, z_loss), LogitType::bf16, rows, 2).loss,
             half_wanted, 1e-6 * std::fabs(half_wanted) + 1e-6);
  for (size_t i = 0; i < half.size(); ++i)
    CHECK_NEAR(from_bf16(half[i]), half_gradient[i], 2e-6 + std::fabs(half_gradient[i]) / 256);
}

template <class Body>
void for_each_capability(const Body& body) {
  for (Capability c : kCapabilities) {
    if (c > detected_capability()) continue;
    set_capability(name_of(c));
    body();
  }
  set_capability("");
}

}  // namespace

TEST(masked_lm_loss_matches_double) {
  for_each_capability([] {
    for (int64_t vocab : {1, 2, 7, 16, 33, 1000}) {
      compare_with_double(0.0f, 0.0f, 5, vocab);
      compare_with_double(0.1f, 1e-3f, 5, vocab);
    }
  });
}

TEST(masked_lm_loss_does_not_depend_on_threads) {
  const Problem problem(37, 501, 5.0f);
  for_each_capability([&] {
    std::vector<float> one = problem.logits;
    const double loss = masked_lm_loss_cpu(problem.params(one.data(), 0.1f, 0.01f), LogitType::f32, 37, 1).loss;
    for (int threads : {2, 3, 8}) {
      std::vector<float> many = problem.logits;
      CHECK(masked_lm_loss_cpu(problem.params(many.data(), 0.1f, 0.01f), LogitType::f32, 37, threads).loss == loss);
      CHECK(std::memcmp(one.data(), many.data(), one.size() * 4) == 0);
    }
  });
}

TEST(masked_lm_loss_extremes) {
  for_each_capability([] {
    // A NaN stays visible; -inf is a class that never happens; +-1e30 saturate.
    std::vector<float> x = {0.0f, NAN, 1.0f, -INFINITY, 0.0f, 0.0f, 1e30f, -1e30f, 0.0f};
    const std::vector<int64_t> targets = {0, 1, 0};
    MaskedLmLossParams p{};
    p.logits_NV = x.data();
    p.row_stride = p.vocab = 3;
    p.targets_N = targets.data();
    p.gradient = true;
    CHECK(std::isnan(masked_lm_loss_cpu(p, LogitType::f32, 3, 1).loss));
    CHECK(std::isnan(x[0]));
    CHECK(x[3] == 0.0f);
    CHECK_NEAR(x[4], -0.5, 1e-6);
    CHECK(x[6] == 0.0f && x[7] == 0.0f && x[8] == 0.0f);
  });
}

TEST(first_of_equal_maxima_counts) {
  for_each_capability([] {
    std::vector<float> x = {1.0f, 3.0f, 3.0f, 1.0f, 3.0f, 3.0f};
    const std::vector<int64_t> targets = {1, 2};
    MaskedLmLossParams p{};
    p.logits_NV = x.data();
    p.row_stride = p.vocab = 3;
    p.targets_N = targets.data();
    CHECK(masked_lm_loss_cpu(p, LogitType::f32, 2, 1).correct == 1);
  });
}

TEST(column_sum_matches_double) {
  Numbers numbers(3);
  const int64_t rows = 45, vocab = 4099;
  const std::vector<float> x = numbers.vector(rows * vocab);
  for_each_capability([&] {
    std::vector<float> sum(vocab, 1.0f), again(vocab, 1.0f);
    column_sum_cpu(x.data(), LogitType::f32, rows, vocab, vocab, sum.data(), 1);
    column_sum_cpu(x.data(), LogitType::f32, rows, vocab, vocab, again.data(), 3);
    CHECK(std::memcmp(sum.data(), again.data(), vocab * 4) == 0);
    for (int64_t v = 0; v < vocab; ++v) {
      double wanted = 1.0;
      for (int64_t n = 0; n < rows; ++n) wanted += x[n * vocab + v];
      CHECK_NEAR(sum[v], wanted, 1e-5);
    }
  });
}
