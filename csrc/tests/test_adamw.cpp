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
    std::vector<AdamWTensor> tensors;
    const AdamWParams p{0.999f, 0.1f, 0.001f, 1e-8f, 0.7f};
    for (size_t count : {size_t(0), size_t(1), size_t(7), size_t(33), size_t(70000)}) {
      for (int i = 0; i < 4; ++i) kept.push_back(numbers.vector(count));
      for (float& v : kept.back()) v *= v;
      rounded.emplace_back(count);
      auto* const t = &kept[kept.size() - 4];
      tensors.push_back({t[0].data(), t[1].data(), t[2].data(), t[3].data(), count == 7 ? nullptr : rounded.back().data(),
                         int64_t(count), 0.99f, 0.05f, 1.5f});
      // A vector that grows moves its vectors, not their elements: the pointers stay.
    }
    const auto before = kept;
    adamw_cpu(tensors, p, 3);
    for (size_t n = 0; n < tensors.size(); ++n) {
      const AdamWTensor& x = tensors[n];
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
