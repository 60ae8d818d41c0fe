// One step of AdamW against double precision: more tensors than a launch holds, aligned or not, empty or long.
#include "../../adamw/adamw_cuda.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;

namespace {

struct Tensor {
  size_t count, shift;
  std::vector<float> before[4];  // weight, gradient, mean, square
  std::vector<Buffer<float>> buffers;
  std::vector<Buffer<uint16_t>> rounded;

  Tensor(tests::Numbers& numbers, size_t elements, size_t offset, bool with_rounded) : count(elements), shift(offset) {
    for (auto& values : before) values = numbers.vector(count + shift);
    for (float& v : before[3]) v *= v;
    for (int i = 0; i < 4; ++i)
      buffers.push_back(i == 1 ? Buffer<float>::input("gradient", before[i]) : Buffer<float>::in_place("state", before[i]));
    if (with_rounded) rounded.push_back(Buffer<uint16_t>::output("rounded", count + shift, shift));
  }

  AdamWTensor parameters() const {
    const auto at = [&](size_t i) { return buffers[i].data() + shift; };
    return {at(0), at(1), at(2), at(3), rounded.empty() ? nullptr : rounded[0].data() + shift, int64_t(count),
            0.99f, 0.05f, 1.5f};
  }

  void check(const AdamWParams& p) const {
    const AdamWTensor x = parameters();
    for (size_t i = 0; i < count; ++i) {
      const auto old = [&](int which) { return double(before[which][shift + i]); };
      const double g = old(1) * double(p.scale), mean = 0.9 * old(2) + 0.1 * g, square = 0.999 * old(3) + 0.001 * g * g;
      const double weight =
          old(0) * double(x.keep) - double(x.step_size) * mean / (std::sqrt(square) * double(x.root) + double(p.eps));
      const auto now = [&](int which) { return buffers[size_t(which)][shift + i]; };
      CHECK_NEAR(now(2), mean, 1e-6);
      CHECK_NEAR(now(3), square, 1e-6);
      CHECK_NEAR(now(0), weight, 1e-6 * (1 + std::fabs(weight - old(0))));
      if (x.rounded) CHECK(rounded[0][shift + i] == from_float<bf16>(now(0)).bits);
    }
  }
};

}  // namespace

TEST(cuda_adamw_matches_double) {
  tests::in_every_order([] {
    tests::Numbers numbers(13);
    std::vector<Tensor> tensors;
    for (size_t count : {0, 1, 7, 33, 4100}) tensors.emplace_back(numbers, count, count % 2, count != 7);
    for (int i = 0; i < 90; ++i) tensors.emplace_back(numbers, size_t(i % 3), 0, i % 2);
    std::vector<AdamWTensor> list;
    for (const Tensor& t : tensors) list.push_back(t.parameters());
    const AdamWCuda c{list.data(), int64_t(list.size()), {0.999f, 0.1f, 0.001f, 1e-8f, 0.7f}, 0};
    CHECK(tests::ran(tunecore_cuda_adamw, c));
    for (const Tensor& t : tensors) t.check(c.p);
  });
}
