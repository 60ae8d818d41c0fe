// Dropout of every variant against Philox drawn one element after another.
#include "../dropout/dropout_cpu.h"
#include "bf16.h"
#include "check.h"
#include "dropout_words.h"
#include "variants.h"

using namespace tunecore;
using tests::kept;

TEST(dropout_draws_by_counter) {
  tests::for_each_variant([] {
    for (int64_t count : {0, 1, 7, 128, 1000, 20011}) {
      const std::vector<float> x = tests::Numbers(3).vector(size_t(count));
      std::vector<float> out(x.size());
      std::vector<uint16_t> half, half_out(x.size());
      for (float v : x) half.push_back(tests::to_bf16(v));
      DropoutParams p{x.data(), out.data(), count, 0xFEDCBA9876543210ull, 11, 6554};
      dropout_cpu(p, DropoutType::f32, 3);
      p.x = half.data(), p.out = half_out.data();
      dropout_cpu(p, DropoutType::bf16, 2);
      const float scale = 65536.0f / (65536 - 6554);
      for (int64_t n = 0; n < count; ++n) {
        CHECK(out[size_t(n)] == (kept(p, n) ? x[size_t(n)] * scale : 0.0f));
        const float wanted = kept(p, n) ? tests::from_bf16(half[size_t(n)]) * scale : 0.0f;
        CHECK(half_out[size_t(n)] == tests::to_bf16(wanted));
      }
    }
  });
}
