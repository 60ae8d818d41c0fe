// The float32 product of every variant against double precision: layouts, edges, several passes over the depth.
#include "../gemm/gemm_cpu.h"
#include "check.h"
#include "variants.h"

using namespace tunecore;

namespace {

struct Case {
  int64_t rows, columns, depth;
  bool a_transposed, b_transposed, add, bias;
  int64_t c_stride;
};

void against_double(const Case& s, int threads) {
  tests::Numbers numbers(11);
  const std::vector<float> a = numbers.vector(size_t(s.rows * s.depth)), b = numbers.vector(size_t(s.depth * s.columns));
  const std::vector<float> bias = numbers.vector(size_t(s.columns));
  std::vector<float> c = numbers.vector(size_t(s.rows * s.c_stride));
  const std::vector<float> before = c;
  const GemmParams p{{a.data(), s.a_transposed ? 1 : s.depth, s.a_transposed ? s.rows : 1},
                     {b.data(), s.b_transposed ? 1 : s.columns, s.b_transposed ? s.depth : 1},
                     s.rows, s.columns, s.depth, c.data(), s.c_stride, s.bias ? bias.data() : nullptr, s.add};
  gemm_cpu(p, threads);
  for (int64_t m = 0; m < s.rows; ++m)
    for (int64_t n = 0; n < s.c_stride; ++n) {
      const size_t at = size_t(m * s.c_stride + n);
      if (n >= s.columns) {
        CHECK(c[at] == before[at]);  // the rest of a row belongs to somebody else
        continue;
      }
      double wanted = s.add ? before[at] : s.bias ? bias[size_t(n)] : 0.0;
      for (int64_t k = 0; k < s.depth; ++k)
        wanted += double(p.a_MK.data[m * p.a_MK.row_stride + k * p.a_MK.column_stride]) *
                  p.b_KN.data[k * p.b_KN.row_stride + n * p.b_KN.column_stride];
      CHECK_NEAR(c[at], wanted, 3e-6 * (1 + std::sqrt(double(s.depth))));
    }
}

}  // namespace

TEST(gemm_matches_double) {
  tests::for_each_variant([] {
    for (bool a_transposed : {false, true})
      for (bool b_transposed : {false, true}) {
        for (int64_t rows : {1, 5, 6, 97})
          for (int64_t columns : {1, 16, 63, 130})
            for (int64_t depth : {0, 1, 17, 70})
              against_double({rows, columns, depth, a_transposed, b_transposed, false, false, columns}, 1);
        against_double({40, 70, 1100, a_transposed, b_transposed, false, true, 77}, 3);
        against_double({40, 70, 1100, a_transposed, b_transposed, true, false, 77}, 3);
      }
    for (int threads : {2, 3, 7})  // tiles are halved until each thread has some: always whole panels
      against_double({300, 520, 20, false, true, false, true, 520}, threads);
    against_double({3, 3100, 5, false, true, false, true, 3100}, 2);
    against_double({3100, 3, 5, true, false, true, false, 4}, 2);
  });
}

TEST(gemm_gives_the_same_bits_for_any_number_of_threads) {
  tests::for_each_variant([] {
    const int64_t rows = 230, columns = 310, depth = 600;
    tests::Numbers numbers(5);
    const std::vector<float> a = numbers.vector(size_t(rows * depth)), b = numbers.vector(size_t(depth * columns));
    std::vector<std::vector<float>> found;
    for (int threads : {1, 2, 7}) {
      found.emplace_back(size_t(rows * columns), 1.0f);
      gemm_cpu({{a.data(), depth, 1}, {b.data(), columns, 1}, rows, columns, depth, found.back().data(), columns,
                nullptr, false}, threads);
    }
    CHECK(found[0] == found[1]);
    CHECK(found[0] == found[2]);
  });
}

TEST(gemm_keeps_what_is_not_a_number) {
  tests::for_each_variant([] {
    std::vector<float> a(7 * 20, 0.0f), b(20 * 33, 1.0f), c(7 * 33, 0.0f);
    a[3 * 20 + 4] = NAN;
    gemm_cpu({{a.data(), 20, 1}, {b.data(), 33, 1}, 7, 33, 20, c.data(), 33, nullptr, false}, 1);
    for (int64_t m = 0; m < 7; ++m)
      for (int64_t n = 0; n < 33; ++n) CHECK(std::isnan(c[size_t(m * 33 + n)]) == (m == 3));
  });
}
