#include "embedding_cpu.h"

#include <algorithm>
#include <cstring>

#include "../common/parallel.h"

namespace tunecore {
namespace {

constexpr int64_t kColumns = 64;

float wide(float x) { return x; }

float wide(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Threads share columns, not tokens: two tokens may have one row, and its sum must keep their order.
template <class S>
void columns(const EmbeddingParams& p, int64_t begin, int64_t end) {
  const S* const dout_TE = static_cast<const S*>(p.dout_TE);
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (p.ids_T[t] == p.padding) continue;
    float* const row_E = p.dtable_VE + p.ids_T[t] * p.width;
    const S* const from_E = dout_TE + t * p.width;
    for (int64_t e = begin; e < end; ++e) row_E[e] += wide(from_E[e]);
  }
}

}  // namespace

void embedding_backward_cpu(const EmbeddingParams& p, EmbeddingType type, int threads) {
  parallel_for((p.width + kColumns - 1) / kColumns, threads, [&](int64_t tile, int) {
    const int64_t begin = tile * kColumns, end = std::min(p.width, begin + kColumns);
    type == EmbeddingType::f32 ? columns<float>(p, begin, end) : columns<uint16_t>(p, begin, end);
  });
}

}  // namespace tunecore
