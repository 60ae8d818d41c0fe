// The gradients of queries and of the bias: a block has a tile of queries of one head and goes over tiles of keys, as in
// the forward pass. Its warps also leave the sums of dout * out of their rows for the gradients of keys.
#pragma once
#include "../../common/cuda/reductions.h"
#include "key_stream.h"

namespace tunecore::cuda {
namespace {

constexpr int kWarpQueries = kAttentionGradientQueries / kAttentionWarps;
static_assert(kWarpQueries == 16, "a warp has one tile of rows");

template <int kD>
struct QueryShape {
  static constexpr int kQueries = kAttentionGradientQueries;
  static constexpr int kKeys = kD <= 64 ? 64 : 32;
  static constexpr int kTile = kQueries * kStride<kD>;  // of queries, and behind them of their dout
  template <class T>
  using Keys = KeyStream<T, kD, kQueries, kKeys>;
};

// The gradients of the bias in one warp's shared memory: those of a tile, and their sums over its tiles by distance. A
// distance is one lane's at a time, so no two add to one sum.
template <int kKeys>
struct BiasSums {
  static constexpr int kColumns = kKeys + 8;  // of a row: those of half a warp lie in banks of their own
  static constexpr int kTile = kWarpQueries * kColumns;
  Shared<float> tile, sums;
  int reach;
  float far_before = 0.0f, far_behind = 0.0f;  // of the distances up to -reach, and from reach on

  // An even number, for the pairs of the next warp.
  __host__ __device__ static int floats(const AttentionParams& p) { return kTile + 2 * int(p.reach) + 2; }

  __device__ __forceinline__ BiasSums(Shared<float> memory, int of_reach)
      : tile(memory), sums(memory + kTile), reach(of_reach) {}

  __device__ __forceinline__ void clear() {
    for (int n = Lane().index; n <= 2 * reach; n += kWarp) store(sums, n, 0.0f);
  }

  // `lowest` is the distance of the last row from the first key.
  __device__ __forceinline__ void add(const float (&dscores)[1][kKeys / 8][4], int lowest) {
    const Lane lane;
    TC_UNROLL
    for (int n = 0; n < kKeys / 8; ++n)
      TC_UNROLL
      for (int half = 0; half < 2; ++half)
        store_pack(tile, (8 * half + lane.row) * kColumns + 8 * n + lane.column,
                   Pack<float, 2>{{dscores[0][n][2 * half], dscores[0][n][2 * half + 1]}});
    __syncwarp();
    for (int n = lane.index; n < kKeys + kWarpQueries - 1; n += kWarp) {
      float sum = 0.0f;
      for (int row = 0; row < kWarpQueries; ++row) {
        const int column = n - (kWarpQueries - 1) + row;
        if (column >= 0 && column < kKeys) sum += load(tile, row * kColumns + column);
      }
      const int d = lowest + n;
      if (d <= -reach)
        far_before += sum;
      else if (d >= reach)
        far_behind += sum;
      else
        store(sums, d + reach, load(sums, d + reach) + sum);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void finish() {
    const float before = warp_sum(far_before), behind = warp_sum(far_behind);
    __syncwarp();
    if (Lane().index) return;
    store(sums, 0, load(sums, 0) + before);
    store(sums, 2 * reach, load(sums, 2 * reach) + behind);
  }
};

// What a lane knows of its rows g and g + 8.
struct GradientRows {
  float lse[2];    // load_lse
  float delta[2];  // sum of dout * out
};

template <class T, int kD>
__device__ __forceinline__ GradientRows load_rows(const AttentionCuda& c, const Sequence& s, int head, int query) {
  const AttentionParams& p = c.p;
  const Lane lane;
  GradientRows rows;
  TC_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int i = query + 8 * half + lane.row, token = s.first_q + i;
    const bool inside = i < s.queries;
    rows.lse[half] = load_lse(p, head, token, inside);
    float sum = 0.0f;
    for (int d = 4 * lane.column; inside && d < kD; d += 32) {
      const auto out = load_pack<8>(global<const T>(p.out_THD), (token * p.heads + head) * kD + d);
      const auto dout = load_pack<8>(row_of<T>(p.dout_THD, token, head), d);
      TC_UNROLL
      for (int e = 0; e < 8; ++e) sum += to_float(out.v[e]) * to_float(dout.v[e]);
    }
    rows.delta[half] = row_sum(sum);
    if (inside && lane.column == 0) store(global<float>(c.delta_HT), head * p.tokens + token, rows.delta[half]);
  }
  return rows;
}

// Products q k -> weights * (dweights - delta), in dweights. `bias` is that of the distance from the warp's first query
// to `key`.
template <int kN>
__device__ __forceinline__ void score_gradients(const float (&x)[1][kN][4], float (&dweights)[1][kN][4],
                                                const AttentionParams& p, const Sequence& s, const GradientRows& rows,
                                                const Dropout& dropout, int query, int key, bool masked,
                                                Shared<float> bias) {
  const Lane lane;
  const float scale = p.scale * kLog2E;
  TC_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = 8 * half + lane.row;
    uint32_t bits = 0;
    TC_UNROLL
    for (int n = 0; n < kN; ++n) {
      if (dropout.drop_below && n % 4 == 0) bits = dropout.kept_of_row<32>(query + row, key + 8 * n) >> lane.column;
      TC_UNROLL
      for (int e = 0; e < 2; ++e) {
        float score = x[0][n][2 * half + e] * scale, dweight = dweights[0][n][2 * half + e];
        if (bias) score += load(bias, 8 * n + lane.column + e - row);
        if (dropout.drop_below) dweight = bits >> (8 * (n % 4) + e) & 1u ? dweight * dropout.grown : 0.0f;
        dweights[0][n][2 * half + e] = exp2_approximately(score - rows.lse[half]) * (dweight - rows.delta[half]);
      }
    }
    if (masked) set_unseen(dweights[0], half, s.seen_by(p, query + row), key, 0.0f);
  }
}

// The sums of the block's warps, zeros where it has no rows, to its place among the parts.
template <class Sums>
__device__ __forceinline__ void write_bias_part(const AttentionCuda& c, Shared<float> all_sums, bool any) {
  const int distances = 2 * int(c.p.reach) + 1, stride = Sums::floats(c.p);
  const auto part = global<float>(c.bias_parts) + (int64_t(blockIdx.x) * gridDim.y + blockIdx.y) * distances;
  if (any) __syncthreads();
  for (int n = int(threadIdx.x); n < distances; n += kAttentionThreads) {
    float sum = 0.0f;
    for (int warp = 0; any && warp < kAttentionWarps; ++warp) sum += load(all_sums, warp * stride + Sums::kTile + n);
    store(part, n, sum);
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks) query_gradient(const AttentionCuda c) {
  using Shape = QueryShape<kD>;
  using Keys = typename Shape::template Keys<T>;
  using Sums = BiasSums<Shape::kKeys>;
  const AttentionParams& p = c.p;
  const Tile tile = Tile::of_block<Shape::kQueries>(p.cu_seqlens_q, int(p.sequences));
  const Sequence s(p, tile.sequence);
  TC_SMEM(T, shared);
  const auto tiles = shared + 2 * Shape::kTile;
  const auto floats = pointer_cast<float>(tiles + Keys::kElements), all_sums = floats + Keys::floats(p);
  const bool want_dbias = c.dbias_BH != nullptr;
  if (tile.first >= s.queries) {
    if (want_dbias) write_bias_part<Sums>(c, all_sums, false);
    return;
  }
  const Keys keys(p, s, tile.first, tiles, floats);
  const int head = int(blockIdx.y), warp = int(threadIdx.x) / kWarp, query = tile.first + warp * kWarpQueries;
  const GradientRows rows = load_rows<T, kD>(c, s, head, query);
  const Dropout dropout(c, s.index, head);
  Sums bias_sums(all_sums + warp * Sums::floats(p), int(p.reach));
  if (want_dbias) bias_sums.clear();
  float dq[1][kD / 8][4];
  clear(dq);
  const auto queries = shared + warp * kWarpQueries * kStride<kD>, douts = queries + Shape::kTile;
  const auto start = [&] {
    keys.start_queries(shared, p.q_THD);
    keys.start_queries(shared + Shape::kTile, p.dout_THD);
  };
  keys.for_each(query, kWarpQueries, start, [&](int key, int stage, bool masked) {
    float x[1][Shape::kKeys / 8][4], dscores[1][Shape::kKeys / 8][4];
    multiply<kD>(x, queries, keys.keys(stage));
    multiply<kD>(dscores, douts, keys.values(stage));
    score_gradients(x, dscores, p, s, rows, dropout, query, key, masked, keys.bias(stage, query));
    if (want_dbias) bias_sums.add(dscores, key - s.place(query + kWarpQueries - 1));
    add_product<kD>(dq, dscores, keys.keys(stage));
  });
  if (want_dbias) {
    bias_sums.finish();
    write_bias_part<Sums>(c, all_sums, true);
  }
  const float by[1][2] = {{p.scale, p.scale}};
  const int64_t stride = p.heads * kD;
  store_rows<kD>(dq, by, queries, global<T>(p.dq_THD) + ((s.first_q + query) * stride + head * kD), stride,
                 s.queries - query);
}

template <class T, int kD>
void launch_query_gradient(const AttentionCuda& c, void* stream) {
  using Shape = QueryShape<kD>;
  using Keys = typename Shape::template Keys<T>;
  const AttentionParams& p = c.p;
  int floats = Keys::floats(p);
  if (c.dbias_BH) floats += kAttentionWarps * BiasSums<Shape::kKeys>::floats(p);
  const size_t bytes = (2 * Shape::kTile + Keys::kElements) * sizeof(T) + size_t(floats) * sizeof(float);
  const dim3 grid(unsigned(attention_slots(p.tokens, p.sequences, Shape::kQueries)), unsigned(p.heads));
  TC_LAUNCH((query_gradient<T, kD>), grid, kAttentionThreads, bytes, stream, c);
}

}  // namespace
}  // namespace tunecore::cuda
