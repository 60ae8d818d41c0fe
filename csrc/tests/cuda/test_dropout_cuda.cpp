// Dropout against the words of philox.h, drawn one element after another; what is kept is rounded once.
#include "../../dropout/dropout_cuda.h"
#include "../dropout_words.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::number;

namespace {

constexpr uint64_t kKey = 0xFEDCBA9876543210ull;

Buffer<uint64_t> key() { return Buffer<uint64_t>::input("rng_key", {kKey}); }

DropoutCuda params(const void* x, void* out, int64_t count, DType dtype, const Buffer<uint64_t>& at) {
  return {{x, out, count, kKey, 11, 6554}, at.data(), 0, int32_t(dtype)};
}

template <class T>
void against_double(int64_t count, size_t shift = 0) {
  tests::Numbers numbers(3);
  const auto x = tests::rounded<T>(numbers.vector(size_t(count) + shift));
  auto in = Buffer<T>::input("x", x), out = Buffer<T>::output("out", x.size(), shift), same = Buffer<T>::in_place("same", x);
  const auto rng_key = key();
  const DropoutCuda c = params(in.data() + shift, out.data() + shift, count, tests::kDType<T>, rng_key);
  const DropoutCuda in_place = params(same.data() + shift, same.data() + shift, count, tests::kDType<T>, rng_key);
  for (const DropoutCuda& one : {c, in_place}) CHECK(tests::ran(tunecore_cuda_dropout, one));
  const double scale = double(65536.0f / (65536 - 6554));
  for (int64_t n = 0; n < count; ++n) {
    const size_t i = shift + size_t(n);
    const float wanted = tests::kept(c.p, n) ? float(number(x[i]) * scale) : 0.0f;
    CHECK(number(out[i]) == number(from_float<T>(wanted)));
    CHECK(number(same[i]) == number(from_float<T>(wanted)));
  }
}

}  // namespace

TEST(cuda_dropout_draws_by_counter) {
  tests::in_every_order([] {
    tests::for_each_type([](auto zero) {
      using T = decltype(zero);
      for (const int64_t count : {0, 1, 7, 8, 128, 4099}) against_double<T>(count);
      against_double<T>(2051, 3);  // begins at no multiple of 16 bytes
    });
  });
}

TEST(cuda_dropout_of_a_dropped_nan_is_zero) {
  std::vector<float> x(4096, NAN);
  auto in = Buffer<float>::input("x", x), out = Buffer<float>::output("out", x.size());
  const auto rng_key = key();
  const DropoutCuda c = params(in.data(), out.data(), 4096, DType::f32, rng_key);
  CHECK(tests::ran(tunecore_cuda_dropout, c));
  for (int64_t n = 0; n < 4096; ++n) CHECK(tests::kept(c.p, n) ? std::isnan(out[size_t(n)]) : out[size_t(n)] == 0.0f);
}

TEST(cuda_dropout_refuses_to_drop_everything) {
  DropoutCuda c = params(nullptr, nullptr, 8, DType::f32, key());
  c.p.drop_below = 65536;
  CHECK(tests::has(tests::failure_of(tunecore_cuda_dropout, c), "less than 65536"));
}
