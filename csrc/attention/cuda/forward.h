// Forward: a block has a tile of queries of one head and goes over tiles of keys with an online softmax (Dao 2023,
// FlashAttention-2, arXiv 2307.08691). The copy of the next tile runs while this one is computed: one barrier a tile.
#pragma once
#include "key_stream.h"

namespace tunecore::cuda {
namespace {

template <int kD>
struct ForwardShape {
  static constexpr int kM = kD <= 64 ? 2 : 1;  // what fits in the registers of a thread
  static constexpr int kRows = 16 * kM;        // queries of a warp
  static constexpr int kQueries = kRows * kAttentionWarps;
  static constexpr int kKeys = kD <= 64 ? 64 : kD <= 128 ? 32 : 16;
  static constexpr int kTile = kQueries * kStride<kD>;
  template <class T>
  using Keys = KeyStream<T, kD, kQueries, kKeys>;
};

// The rows of a warp: row [m][half] of a lane is query 16 m + 8 half + g of them.
template <int kD>
struct ForwardRows {
  static constexpr int kM = ForwardShape<kD>::kM;
  float top[kM][2], total[kM][2], sums[kM][kD / 8][4];
};

// Scores of the keys from `key` on in units of log2, bias added, -infinity where they are not seen. `bias` is that of the
// distance from the warp's first query to `key`.
template <int kM, int kN>
__device__ __forceinline__ void finish_scores(float (&x)[kM][kN][4], const AttentionParams& p, const Sequence& s,
                                              int query, int key, bool masked, Shared<float> bias) {
  const Lane lane;
  const float scale = p.scale * kLog2E;
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + 8 * half + lane.row;
      TC_UNROLL
      for (int n = 0; n < kN; ++n)
        TC_UNROLL
        for (int e = 0; e < 2; ++e) x[m][n][2 * half + e] *= scale;
      if (bias)
        TC_UNROLL
        for (int n = 0; n < kN; ++n)
          TC_UNROLL
          for (int e = 0; e < 2; ++e) x[m][n][2 * half + e] += load(bias, 8 * n + lane.column + e - row);
      if (masked) set_unseen(x[m], half, s.seen_by(p, query + row), key, -INFINITY);
    }
}

// Scores -> weights relative to the largest so far; what was summed before shrinks with it.
template <int kD, int kM, int kN>
__device__ __forceinline__ void online_softmax(float (&x)[kM][kN][4], ForwardRows<kD>& rows) {
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half) {
      float largest = x[m][0][2 * half];
      TC_UNROLL
      for (int n = 0; n < kN; ++n)
        TC_UNROLL
        for (int e = 0; e < 2; ++e) largest = fmaxf(largest, x[m][n][2 * half + e]);
      const float top = fmaxf(rows.top[m][half], row_max(largest)), shift = top == -INFINITY ? 0.0f : top;
      const float shrink = exp2_approximately(rows.top[m][half] - shift);
      float total = 0.0f;
      TC_UNROLL
      for (int n = 0; n < kN; ++n)
        TC_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& weight = x[m][n][2 * half + e];
          weight = exp2_approximately(weight - shift);
          total += weight;
        }
      rows.top[m][half] = top;
      rows.total[m][half] = rows.total[m][half] * shrink + total;
      TC_UNROLL
      for (int n = 0; n < kD / 8; ++n)
        TC_UNROLL
        for (int e = 0; e < 2; ++e) rows.sums[m][n][2 * half + e] *= shrink;
    }
}

template <int kM, int kN>
__device__ __forceinline__ void drop_weights(float (&x)[kM][kN][4], const Dropout& dropout, int query, int key) {
  constexpr int kDrawn = kN >= 4 ? 32 : 16;  // keys whose bits a word holds
  const Lane lane;
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half)
      TC_UNROLL
      for (int n = 0; n < kN; n += kDrawn / 8) {
        const int i = query + 16 * m + 8 * half + lane.row;
        const uint32_t bits = dropout.kept_of_row<kDrawn>(i, key + 8 * n) >> lane.column;
        TC_UNROLL
        for (int k = 0; k < kDrawn / 8; ++k)
          TC_UNROLL
          for (int e = 0; e < 2; ++e)
            if (!(bits >> (8 * k + e) & 1u)) x[m][n + k][2 * half + e] = 0.0f;
      }
}

template <int kD, class T>
__device__ __forceinline__ void write_rows(const AttentionParams& p, const Sequence& s, ForwardRows<kD>& rows, int head,
                                           int query, float grown, Shared<T> tile) {
  constexpr int kM = ForwardRows<kD>::kM;
  const Lane lane;
  float by[kM][2];
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float total = row_sum(rows.total[m][half]);
      const int i = query + 16 * m + 8 * half + lane.row;
      by[m][half] = total == 0.0f ? 0.0f : grown / total;
      const float lse = total == 0.0f ? -INFINITY : (rows.top[m][half] + log2f(total)) * kLn2;
      if (lane.column == 0 && i < s.queries)
        store(global<float>(p.lse_HT), head * p.tokens + s.first_q + i, lse);
    }
  const int64_t stride = p.heads * kD;
  const auto out = global<T>(p.out_THD) + ((s.first_q + query) * stride + head * kD);
  store_rows<kD>(rows.sums, by, tile, out, stride, s.queries - query);
}

template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks) forward(const AttentionCuda c) {
  using Shape = ForwardShape<kD>;
  using Keys = typename Shape::template Keys<T>;
  const AttentionParams& p = c.p;
  const Tile tile = Tile::of_block<Shape::kQueries>(p.cu_seqlens_q, int(p.sequences));
  const Sequence s(p, tile.sequence);
  if (tile.first >= s.queries) return;
  TC_SMEM(T, shared);
  const auto tiles = shared + Shape::kTile;
  const Keys keys(p, s, tile.first, tiles, pointer_cast<float>(tiles + Keys::kElements));
  const int head = int(blockIdx.y), first_row = int(threadIdx.x) / kWarp * Shape::kRows, query = tile.first + first_row;
  const Dropout dropout(c, s.index, head);
  ForwardRows<kD> rows;
  clear(rows.sums);
  TC_UNROLL
  for (int m = 0; m < Shape::kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half) rows.top[m][half] = -INFINITY, rows.total[m][half] = 0.0f;
  const auto queries = shared + first_row * kStride<kD>;
  const auto start = [&] { keys.start_queries(shared, p.q_THD); };
  keys.for_each(query, Shape::kRows, start, [&](int key, int stage, bool masked) {
    float x[Shape::kM][Shape::kKeys / 8][4];
    multiply<kD>(x, queries, keys.keys(stage));
    finish_scores(x, p, s, query, key, masked, keys.bias(stage, query));
    online_softmax<kD>(x, rows);
    if (dropout.drop_below) drop_weights(x, dropout, query, key);
    add_product<kD>(rows.sums, x, keys.values(stage));
  });
  write_rows<kD>(p, s, rows, head, query, dropout.grown, queries);
}

template <class T, int kD>
void launch_forward(const AttentionCuda& c, void* stream) {
  using Shape = ForwardShape<kD>;
  using Keys = typename Shape::template Keys<T>;
  const AttentionParams& p = c.p;
  const size_t bytes = (Shape::kTile + Keys::kElements) * sizeof(T) + size_t(Keys::floats(p)) * sizeof(float);
  const dim3 grid(unsigned(attention_slots(p.tokens, p.sequences, Shape::kQueries)), unsigned(p.heads));
  TC_LAUNCH((forward<T, kD>), grid, kAttentionThreads, bytes, stream, c);
}

}  // namespace

template <int kD>
void attention_forward_of(const AttentionCuda& c, void* stream) {
  if (DType(c.dtype) == DType::bf16)
    launch_forward<bf16, kD>(c, stream);
  else
    launch_forward<f16, kD>(c, stream);
}

}  // namespace tunecore::cuda
