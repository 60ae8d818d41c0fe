// The gradient of an embedding table against double precision: rows with one token, with more than a stretch holds, with
// none; padding and ids outside the table get nothing.
#include "../../embedding/embedding_cuda.h"
#include "numeric.h"

#include <algorithm>
#include <numeric>

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::number;

namespace {

constexpr int64_t kRows = 9, kPadding = 4;

template <class T>
struct Problem {
  const size_t T_, E;
  std::vector<int64_t> ids;
  std::vector<T> dout;
  std::vector<float> before;
  Buffer<T> dout_TE;
  Buffer<int64_t> ids_T, order_T;
  Buffer<float> table, parts;

  static std::vector<int64_t> order_of(const std::vector<int64_t>& ids) {
    std::vector<int64_t> order(ids.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[size_t(a)] < ids[size_t(b)]; });
    return order;
  }
  static std::vector<int64_t> sorted(std::vector<int64_t> ids) {
    std::sort(ids.begin(), ids.end());
    return ids;
  }

  Problem(const std::vector<int64_t>& given, int64_t width, size_t shift = 0, tests::Numbers numbers = tests::Numbers(7))
      : T_(given.size()), E(size_t(width)), ids(given), dout(tests::rounded<T>(numbers.vector(T_ * E + shift))),
        before(numbers.vector(size_t(kRows) * E)), dout_TE(Buffer<T>::input("dout", dout)),
        ids_T(Buffer<int64_t>::input("ids", sorted(ids))), order_T(Buffer<int64_t>::input("order", order_of(ids))),
        table(Buffer<float>::in_place("dtable", before)),
        parts(Buffer<float>::output("parts", size_t(tunecore_cuda_embedding_parts(int64_t(T_))) * E)) {
    EmbeddingCuda c{};
    c.dout_TE = dout_TE.data() + shift, c.ids_T = ids_T.data(), c.order_T = order_T.data();
    c.dtable_VE = table.data(), c.parts_BE = parts.data();
    c.tokens = int64_t(T_), c.width = width, c.rows = kRows, c.padding = kPadding, c.dtype = int32_t(tests::kDType<T>);
    CHECK(tests::ran(tunecore_cuda_embedding_backward, c));
    std::vector<double> wanted(before.begin(), before.end());
    for (size_t t = 0; t < T_; ++t)
      for (size_t e = 0; e < E && ids[t] >= 0 && ids[t] < kRows && ids[t] != kPadding; ++e)
        wanted[size_t(ids[t]) * E + e] += number(dout[shift + t * E + e]);
    for (size_t i = 0; i < wanted.size(); ++i) CHECK_NEAR(table[i], wanted[i], 1e-6 * double(T_ + 1));
  }
};

std::vector<int64_t> spread(int64_t tokens) {
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < tokens; ++t) ids.push_back(t * t % 8);  // never row 8
  return ids;
}

// All but a few have one id: its run fills many stretches.
std::vector<int64_t> one_id(int64_t tokens, int64_t id) {
  std::vector<int64_t> ids(size_t(tokens), id);
  for (size_t t = 3; t < ids.size(); t += 50) ids[t] = int64_t(t) / 50 % kRows;
  return ids;
}

}  // namespace

TEST(cuda_embedding_gradient_matches_double) {
  tests::in_every_order([] {
    tests::for_each_type([](auto zero) {
      using T = decltype(zero);
      for (const int64_t tokens : {0, 1, 15, 16, 17, 100}) Problem<T>(spread(tokens), 24);
      for (const int64_t id : {int64_t{0}, kPadding, int64_t{8}}) Problem<T>(one_id(330, id), 40);
      Problem<T>({-1, 3, 9, 3, -7, 1 << 20}, 8);  // ids outside the table
      Problem<T>(one_id(70, 2), 37);              // rows that are no whole packs
      Problem<T>(spread(40), 8, 1);               // begins at no multiple of 16 bytes
      Problem<T>(std::vector<int64_t>(32, 5), 1);
    });
  });
}

TEST(cuda_embedding_gradient_of_wide_rows) { Problem<bf16>(one_id(40, 1), 1100); }

TEST(cuda_embedding_gradient_does_not_depend_on_the_order_of_threads) {
  std::vector<float> first;
  tests::in_every_order([&] {
    const Problem<float> problem(one_id(400, 6), 70);
    const std::vector<float> table = problem.table.values();
    if (first.empty()) first = table;
    CHECK(table == first);
  });
}
