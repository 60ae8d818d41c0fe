// Transposed copies of every variant, in buffers of exactly the size that is theirs.
#include "../transpose/transpose_cpu.h"
#include "check.h"
#include "variants.h"

using namespace tunecore;

TEST(transpose_moves_every_element) {
  tests::for_each_variant([] {
    for (int64_t rows : {0, 1, 31, 32, 33, 100})
      for (int64_t columns : {0, 1, 15, 16, 17, 300}) {
        const int64_t stride = columns + 5, padded = rows + 3;
        std::vector<uint16_t> x, out(size_t(columns * padded), 7);
        for (int64_t n = 0; n < (rows ? (rows - 1) * stride + columns : 0); ++n) x.push_back(uint16_t(n * 31 + 1));
        for (int threads : {1, 3}) {
          transpose_cpu({x.data(), out.data(), rows, columns, stride, padded}, threads);
          for (int64_t c = 0; c < columns; ++c)
            for (int64_t r = 0; r < padded; ++r)
              CHECK(out[size_t(c * padded + r)] == (r < rows ? x[size_t(r * stride + c)] : 0));
        }
      }
  });
}
