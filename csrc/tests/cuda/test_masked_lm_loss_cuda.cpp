// Loss, gradient and counts of a chunk of logits against double precision, on shapes that fit no pack.
#include "../../masked_lm_loss/masked_lm_loss_cuda.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::number;

namespace {

constexpr int64_t kIgnored = -100;

struct Case {
  int64_t rows, vocab, stride;
  float smoothing, z_loss;
  bool bias, gradient;
};

template <class T>
struct Chunk {
  Buffer<T> logits;
  Buffer<float> bias;
  Buffer<int64_t> targets;
  Buffer<double> loss;
  Buffer<uint8_t> correct;
  MaskedLmLossCuda c{};

  Chunk(const Case& of, const std::vector<T>& x, const std::vector<float>& b, const std::vector<int64_t>& t)
      : logits(Buffer<T>::in_place("logits", x)), bias(Buffer<float>::input("bias", b)),
        targets(Buffer<int64_t>::input("targets", t)), loss(Buffer<double>::output("loss", size_t(of.rows))),
        correct(Buffer<uint8_t>::output("correct", size_t(of.rows))) {
    c.p.logits_NV = logits.data(), c.p.row_stride = of.stride, c.p.vocab = of.vocab;
    c.p.bias_V = of.bias ? bias.data() : nullptr, c.p.targets_N = targets.data();
    c.p.loss_N = loss.data(), c.p.correct_N = correct.data();
    c.p.label_smoothing = of.smoothing, c.p.z_loss = of.z_loss, c.p.gradient = of.gradient;
    c.rows = of.rows, c.ignore_index = kIgnored, c.dtype = int32_t(tests::kDType<T>);
  }
};

template <class T>
void against_double(const Case& of) {
  tests::Numbers numbers(unsigned(of.rows * 1000 + of.vocab));
  const std::vector<T> x = tests::rounded<T>(numbers.vector(size_t(of.rows * of.stride), 9.0f));
  const std::vector<float> b = numbers.vector(size_t(of.vocab));
  std::vector<int64_t> targets;
  for (int64_t n = 0; n < of.rows; ++n) targets.push_back(n == 1 ? kIgnored : n * 7919 % of.vocab);
  Chunk<T> chunk(of, x, b, targets);
  CHECK(tests::ran(tunecore_cuda_masked_lm_loss, chunk.c));
  CHECK(chunk.loss.unwritten() == -1 && chunk.correct.unwritten() == -1);
  for (int64_t n = 0; n < of.rows; ++n) {
    const bool ignored = targets[size_t(n)] == kIgnored;
    const size_t target = ignored ? 0 : size_t(targets[size_t(n)]);
    std::vector<double> z;
    double largest = -INFINITY, denominator = 0, mean = 0;
    for (int64_t v = 0; v < of.vocab; ++v) {
      // The kernel adds the bias in float, so the reference does as well.
      z.push_back(double(float(number(x[size_t(n * of.stride + v)])) + (of.bias ? b[size_t(v)] : 0.0f)));
      largest = std::fmax(largest, z.back());
    }
    size_t first = 0;
    while (z[first] != largest) ++first;
    for (double value : z) denominator += std::exp(value - largest), mean += value / double(of.vocab);
    const double lse = largest + std::log(denominator), smoothing = double(of.smoothing), z_loss = double(of.z_loss);
    const double loss = lse - (1 - smoothing) * z[target] - smoothing * mean + z_loss * lse * lse;
    CHECK_NEAR(chunk.loss[size_t(n)], ignored ? 0.0 : loss, 2e-6 * (1 + std::fabs(loss)));
    CHECK(chunk.correct[size_t(n)] == (!ignored && first == target));
    for (int64_t v = 0; v < of.stride; ++v) {
      const T got = chunk.logits[size_t(n * of.stride + v)];
      if (v >= of.vocab || !of.gradient) {  // what lies between rows, and logits without a gradient, are left alone
        CHECK(number(got) == number(x[size_t(n * of.stride + v)]));
        continue;
      }
      const double wanted = ignored ? 0.0
                                    : std::exp(z[size_t(v)] - lse) * (1 + 2 * z_loss * lse) - smoothing / double(of.vocab) -
                                          (size_t(v) == target ? 1 - smoothing : 0.0);
      CHECK_NEAR(number(got), wanted, 3e-6 + tests::kUnit<T> * std::fabs(wanted));
    }
  }
}

}  // namespace

TEST(cuda_masked_lm_loss_matches_double) {
  tests::in_every_order([] {
    tests::for_each_type([](auto zero) {
      using T = decltype(zero);
      for (const auto& [vocab, stride] : {std::pair<int64_t, int64_t>{1, 1}, {7, 9}, {33, 33}, {301, 304}}) {
        against_double<T>({3, vocab, stride, 0.0f, 0.0f, false, true});
        against_double<T>({3, vocab, stride, 0.1f, 1e-3f, true, true});
      }
      against_double<T>({2, 2311, 2311, 0.1f, 0.0f, true, false});
    });
  });
}

TEST(cuda_masked_lm_loss_extremes) {
  tests::in_every_order([] {
    // A NaN stays visible; -inf is a class that never happens; 1e30 saturates; a target outside is NaN, not a crash.
    const Case of{5, 3, 3, 0.0f, 0.0f, false, true};
    Chunk<float> chunk(of, {0.0f, NAN, 1.0f, -INFINITY, 0.0f, 0.0f, 1e30f, -1e30f, 0.0f, 0, 0, 0, 0, 0, 0}, {},
                       {0, 1, 0, 3, -1});
    CHECK(tests::ran(tunecore_cuda_masked_lm_loss, chunk.c));
    CHECK(std::isnan(chunk.loss[0]) && std::isnan(chunk.logits[0]));
    CHECK(chunk.logits[3] == 0.0f);
    CHECK_NEAR(chunk.logits[4], -0.5, 1e-6);
    CHECK(chunk.loss[2] == 0.0 && chunk.logits[6] == 0.0f && chunk.logits[7] == 0.0f && chunk.correct[2] == 1);
    CHECK(std::isnan(chunk.loss[3]) && std::isnan(chunk.loss[4]) && std::isnan(chunk.logits[9]));
  });
}

TEST(cuda_masked_lm_loss_counts_the_first_of_equal_maxima) {
  const int64_t vocab = 600;
  std::vector<float> x(size_t(3 * vocab), 1.0f);
  for (int64_t row = 0; row < 3; ++row) x[size_t(row * vocab + 300)] = x[size_t(row * vocab + 307)] = x[size_t(row * vocab + 599)] = 3.0f;
  tests::in_every_order([&] {
    Chunk<float> chunk({3, vocab, vocab, 0.0f, 0.0f, false, false}, x, {}, {300, 307, 599});
    CHECK(tests::ran(tunecore_cuda_masked_lm_loss, chunk.c));
    CHECK(chunk.correct[0] == 1 && chunk.correct[1] == 0 && chunk.correct[2] == 0);
  });
}
