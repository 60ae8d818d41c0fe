// One step of AdamW against double precision, every variant, tensors shorter and longer than a block.
#include "../adamw/adamw_cpu.h"
#include "bf16.h"
#include "check.h"
#include "variants.h"

using namespace tunecore;

TEST(adamw_matches_double) {
  tests::for_each_variant([] {
    tests::Numbers numbers(13);
    std::vector<std::vector<float>> kept;
    std::vector<std::vector<uint16_t>> rounded;
    std::vector<AdamWItem> items;
    const AdamWParams p{0.999f, 0.1f, 0.001f, 1e-8f, 0.7f};
    for (size_t count : {size_t(0), size_t(1), size_t(7), size_t(33), size_t(70000)}) {
      for (int i = 0; i < 4; ++i) kept.push_back(numbers.vector(count));
      for (float& v : kept.back()) v *= v;
      rounded.emplace_back(count);
      auto* const t = &kept[kept.size() - 4];
      items.push_back({{t[0].data(), t[1].data(), t[2].data(), t[3].data(), count == 7 ? nullptr : rounded.back().data(),
                        int64_t(count), 0.99f, 0.05f, 1.5f}, {}});
      // A vector that grows moves its vectors, not their elements: the pointers stay.
    }
    const auto before = kept;
    adamw_cpu(items, p, 3);
    for (size_t n = 0; n < items.size(); ++n) {
      const AdamWTensor& x = items[n].tensor;
      for (size_t i = 0; i < size_t(x.count); ++i) {
        const double g = double(before[4 * n + 1][i]) * double(p.scale);
        const double mean = 0.9 * double(before[4 * n + 2][i]) + 0.1 * g;
        const double square = 0.999 * double(before[4 * n + 3][i]) + 0.001 * g * g;
        const double weight = double(before[4 * n][i]) * double(x.keep) -
                              double(x.step_size) * mean / (std::sqrt(square) * double(x.root) + double(p.eps));
        CHECK_NEAR(x.mean[i], mean, 1e-6);
        CHECK_NEAR(x.square[i], square, 1e-6);
        CHECK_NEAR(x.weight[i], weight, 1e-6 * (1 + std::fabs(weight - double(before[4 * n][i]))));
        if (x.rounded) CHECK(x.rounded[i] == tests::to_bf16(x.weight[i]));
      }
    }
  });
}

namespace {

struct State {
  std::vector<float> weight, mean, square;
  std::vector<uint16_t> rounded;
  bool operator==(const State& o) const {
    return weight == o.weight && mean == o.mean && square == o.square && rounded == o.rounded;
  }
  AdamWTensor with(const std::vector<float>& gradient, float keep) {
    return {weight.data(), gradient.data(), mean.data(), square.data(), rounded.data(), int64_t(weight.size()), keep,
            0.05f,         1.5f};
  }
};

}  // namespace

TEST(adamw_of_some_rows_is_that_of_zeros_elsewhere) {
  constexpr int64_t rows = 1500;
  const std::vector<std::vector<int64_t>> steps{{0, 1, 700, rows - 1}, {}, {2, 701}};
  const AdamWParams p{0.999f, 0.1f, 0.001f, 1e-8f, 0.7f};
  tests::for_each_variant([&] {
    for (const int64_t width : {1, 37, 64})
      for (const float keep : {1.0f, 0.9f}) {
        tests::Numbers numbers(7);
        const size_t size = size_t(rows * width);
        State whole{numbers.vector(size), std::vector<float>(size), std::vector<float>(size), std::vector<uint16_t>(size)};
        for (size_t i = 0; i < size; ++i) whole.rounded[i] = tests::to_bf16(whole.weight[i]);
        State some = whole;
        for (const std::vector<int64_t>& moved : steps) {
          const std::vector<float> values = numbers.vector(moved.size() * size_t(width));
          std::vector<float> gradient(size);
          for (size_t u = 0; u < moved.size(); ++u)
            for (int64_t e = 0; e < width; ++e) gradient[size_t(moved[u] * width + e)] = values[u * size_t(width) + size_t(e)];
          adamw_cpu({{whole.with(gradient, keep), {}}}, p, 2);
          adamw_cpu({{some.with(values, keep), {moved.data(), int64_t(moved.size()), width}}}, p, 3);
          CHECK(whole == some);
        }
      }
  });
}
