// The gradient of an embedding table against double precision; padding gets none, other rows are left alone.
#include "../embedding/embedding_cpu.h"
#include "bf16.h"
#include "check.h"

using namespace tunecore;

TEST(embedding_gradient_matches_double) {
  for (int64_t tokens : {0, 1, 300}) {
    for (int64_t width : {1, 64, 130}) {
      const int64_t rows = 9;
      tests::Numbers numbers(17);
      const std::vector<float> dout = numbers.vector(size_t(tokens * width));
      const std::vector<float> before = numbers.vector(size_t(rows * width));
      std::vector<int64_t> ids;
      for (int64_t t = 0; t < tokens; ++t) ids.push_back(t * t % 8);  // never row 8
      std::vector<uint16_t> half;
      for (float v : dout) half.push_back(tests::to_bf16(v));
      for (bool narrow : {false, true}) {
        std::vector<float> table = before;
        std::vector<double> wanted(before.begin(), before.end());
        const void* const from = narrow ? static_cast<const void*>(half.data()) : dout.data();
        embedding_backward_cpu({from, ids.data(), table.data(), tokens, width, 4},
                               narrow ? EmbeddingType::bf16 : EmbeddingType::f32, 3);
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t e = 0; e < width && ids[size_t(t)] != 4; ++e) {
            const size_t at = size_t(t * width + e);
            wanted[size_t(ids[size_t(t)] * width + e)] += double(narrow ? tests::from_bf16(half[at]) : dout[at]);
          }
        for (size_t i = 0; i < table.size(); ++i) CHECK_NEAR(table[i], wanted[i], 1e-4);
      }
    }
  }
}
