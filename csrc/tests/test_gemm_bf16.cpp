// The product of bf16, in tiles and in vectors, emulated and those this machine has, against double precision.
#include <algorithm>

#include "../gemm_bf16/gemm_bf16_cpu.h"
#include "bf16.h"
#include "check.h"
#include "variants.h"

namespace tunecore {
extern const GemmBf16Kernels gemm_bf16_kernels_emulated_tiles;
extern const GemmBf16Kernels gemm_bf16_kernels_emulated_vectors;
}

using namespace tunecore;

namespace {

struct Case {
  int64_t rows, columns, depth;
  bool a_transposed, b_transposed, to_float, add, bias;
};

std::vector<uint16_t> halves(size_t count, unsigned seed) {
  std::vector<uint16_t> all;
  for (float x : tests::Numbers(seed).vector(count)) all.push_back(tests::to_bf16(x));
  return all;
}

// Buffers have exactly the size that is theirs, so that a sanitizer sees the edge.
std::vector<float> against_double(const Case& s, int threads, const GemmBf16Kernels& kernels) {
  const int64_t along = s.a_transposed ? s.rows : s.depth, across = s.a_transposed ? s.depth : s.rows;
  const int64_t a_stride = along + 3, c_stride = s.columns + 5;
  const std::vector<uint16_t> a = halves(size_t(std::max<int64_t>((across - 1) * a_stride + along, 0)), 1);
  const std::vector<uint16_t> b = halves(size_t(s.depth * s.columns), 2), bias = halves(size_t(s.columns), 3);
  std::vector<float> c = tests::Numbers(4).vector(size_t((s.rows - 1) * c_stride + s.columns));
  const std::vector<float> before = c;
  std::vector<uint16_t> half(c.size(), 9);
  const int64_t a_row = s.a_transposed ? 1 : a_stride, a_column = s.a_transposed ? a_stride : 1;
  const int64_t b_row = s.b_transposed ? 1 : s.columns, b_column = s.b_transposed ? s.depth : 1;
  const GemmBf16Params p{{a.data(), a_row, a_column}, {b.data(), b_row, b_column}, s.rows, s.columns, s.depth,
                         s.to_float ? (void*)c.data() : (void*)half.data(), c_stride, s.to_float,
                         s.bias ? bias.data() : nullptr, s.add};
  gemm_bf16_cpu(p, threads, kernels);
  std::vector<float> found;
  for (int64_t m = 0; m < s.rows; ++m)
    for (int64_t n = 0; n < (m + 1 < s.rows ? c_stride : s.columns); ++n) {
      const size_t at = size_t(m * c_stride + n);
      if (n >= s.columns) {  // the rest of a row belongs to somebody else
        CHECK(s.to_float ? c[at] == before[at] : half[at] == 9);
        continue;
      }
      double wanted = (s.add ? before[at] : 0.0) + (s.bias ? tests::from_bf16(bias[size_t(n)]) : 0.0);
      for (int64_t k = 0; k < s.depth; ++k)
        wanted += double(tests::from_bf16(a[size_t(m * a_row + k * a_column)])) *
                  tests::from_bf16(b[size_t(k * b_row + n * b_column)]);
      found.push_back(s.to_float ? c[at] : tests::from_bf16(half[at]));
      const double exact = 3e-6 * (1 + std::sqrt(double(s.depth)));
      CHECK_NEAR(found.back(), wanted, s.to_float ? exact : exact + std::fabs(wanted) / 256);
    }
  return found;
}

template <class Body>
void for_each_kernel(const Body& body) {
  body(gemm_bf16_kernels_emulated_tiles);
  body(gemm_bf16_kernels_emulated_vectors);
  tests::for_each_variant([&] {
    if (const GemmBf16Kernels* const real = gemm_bf16_kernels()) body(*real);
  });
}

}  // namespace

TEST(gemm_bf16_matches_double) {
  for_each_kernel([](const GemmBf16Kernels& kernels) {
    for (int64_t rows : {1, 33, 130})
      for (int64_t columns : {1, 32, 100})
        for (bool a_transposed : {false, true})
          for (bool b_transposed : {false, true}) {
            against_double({rows, columns, 37, a_transposed, b_transposed, true, false, true}, 1, kernels);
            against_double({rows, columns, 96, a_transposed, b_transposed, false, false, false}, 2, kernels);
          }
    for (bool a_transposed : {false, true})
      for (bool b_transposed : {false, true}) {
        against_double({35, 70, 801, a_transposed, b_transposed, true, true, false}, 2, kernels);  // two passes
        against_double({35, 70, 0, a_transposed, b_transposed, false, false, true}, 2, kernels);
      }
    against_double({3, 900, 2700, false, true, true, false, false}, 2, kernels);  // two groups of columns
  });
}

TEST(gemm_bf16_gives_the_same_bits_for_any_number_of_threads) {
  for_each_kernel([](const GemmBf16Kernels& kernels) {
    const Case s{300, 200, 900, true, true, true, false, false};
    const std::vector<float> one = against_double(s, 1, kernels);
    for (int threads : {2, 3, 8}) CHECK(one == against_double(s, threads, kernels));
  });
}
