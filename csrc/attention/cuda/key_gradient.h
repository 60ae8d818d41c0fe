// The gradients of keys and values: a block has a tile of keys of one kv-head and goes over the tiles of queries, of all
// its heads, that see them. Scores lie across: a row is a key, so that weights and score gradients are made where the
// products with dout and the queries want them.
#pragma once
#include "products.h"

namespace tunecore::cuda {
namespace {

template <class T, int kD>
struct KeyShape {
  static constexpr int kWarpKeys = 16, kKeys = kWarpKeys * kAttentionWarps;
  static constexpr int kQueries = kD <= 64 ? 64 : 32;
  static constexpr int kDistances = kQueries + kKeys;
  // Keys and values, two stages of queries and dout; then two stages of floats: the queries' log-denominators and deltas,
  // the bias of a tile's distances.
  static constexpr int kKeyTile = kKeys * kStride<kD>, kQueryTile = kQueries * kStride<kD>;
  static constexpr int kElements = 2 * kKeyTile + 4 * kQueryTile;
  static constexpr int kFloats = 2 * kQueries + kDistances;
  static constexpr size_t kBytes = kElements * sizeof(T) + 2 * kFloats * sizeof(float);
};

// The tiles of queries of a kv-head's heads, one head after the other, in two stages as in KeyStream.
template <class T, int kD>
struct QueryStream {
  using Shape = KeyShape<T, kD>;
  static constexpr int kQueries = Shape::kQueries;

  const AttentionCuda& c;
  const AttentionParams& p;
  const Sequence& s;
  const int first_key, first_head;
  const Range queries;  // that see any of the block's keys
  const Shared<T> tiles;
  const Shared<float> floats;

  __device__ __forceinline__ QueryStream(const AttentionCuda& cuda, const Sequence& sequence, int key, Shared<T> shared)
      : c(cuda), p(cuda.p), s(sequence), first_key(key), first_head(int(blockIdx.y * (p.heads / p.kv_heads))),
        queries(s.that_see(p, key, at_most(key + Shape::kKeys, s.keys))), tiles(shared + 2 * Shape::kKeyTile),
        floats(pointer_cast<float>(shared + Shape::kElements)) {}

  __device__ __forceinline__ Shared<T> rows(int stage) const { return tiles + 2 * stage * Shape::kQueryTile; }
  __device__ __forceinline__ Shared<T> douts(int stage) const { return rows(stage) + Shape::kQueryTile; }
  __device__ __forceinline__ Shared<float> lse(int stage) const { return floats + stage * Shape::kFloats; }
  __device__ __forceinline__ Shared<float> delta(int stage) const { return lse(stage) + kQueries; }
  // Of the distance from the first query of a tile to a key; null without a bias.
  __device__ __forceinline__ Shared<float> bias(int stage, int key) const {
    if (!has_bias(p)) return {};
    return lse(stage) + (2 * kQueries + kQueries - 1 + key - first_key);
  }

  // Start to copy the block's rows of such a tensor.
  __device__ __forceinline__ void start_keys(Shared<T> tile, const AttentionRows& x_SKD) const {
    copy_rows<Shape::kKeys, kD>(tile, row_of<T>(x_SKD, s.first_k, blockIdx.y), x_SKD.token_stride, first_key, s.keys);
  }

  __device__ __forceinline__ void start(int head, int query, int stage) const {
    copy_rows<kQueries, kD>(rows(stage), row_of<T>(p.q_THD, s.first_q, head), p.q_THD.token_stride, query, s.queries);
    copy_rows<kQueries, kD>(douts(stage), row_of<T>(p.dout_THD, s.first_q, head), p.dout_THD.token_stride, query,
                            s.queries);
    cp_async_commit();
    for (int n = int(threadIdx.x); n < kQueries; n += kAttentionThreads) {
      const bool inside = query + n < s.queries;
      const int token = s.first_q + query + n;
      store(lse(stage), n, load_lse(p, head, token, inside));
      store(delta(stage), n, inside ? load(global<const float>(c.delta_HT), head * p.tokens + token) : 0.0f);
    }
    const int nearest = first_key - s.place(query + kQueries - 1);
    if (has_bias(p)) fill_bias(p, lse(stage) + 2 * kQueries, head, nearest, Shape::kDistances - 1);
  }

  // body(head, query, stage) for every tile of queries; first_copies() starts what body needs beside it.
  template <class First, class Body>
  __device__ __forceinline__ void for_each(const First& first_copies, const Body& body) const {
    const int heads = int(p.heads / p.kv_heads), end = queries.begin < queries.end ? first_head + heads : first_head;
    int head = first_head, query = queries.begin;
    if (head < end) first_copies(), start(head, query, 0);
    for (int stage = 0; head < end; stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();
      const int at_head = head, at_query = query;
      query += kQueries;
      if (query >= queries.end) query = queries.begin, ++head;
      if (head < end) start(head, query, stage ^ 1);
      body(at_head, at_query, stage);
    }
  }
};

// Products k q and v dout of the keys from `key` on with the queries from `query` on -> kept weights and score gradients.
template <int kN, class Stream>
__device__ __forceinline__ void weights_and_gradients(float (&x)[1][kN][4], float (&dweights)[1][kN][4],
                                                      const Stream& stream, const Dropout& dropout, int query, int key,
                                                      int stage, bool masked) {
  const Lane lane;
  const float scale = stream.p.scale * kLog2E;
  const auto bias = stream.bias(stage, key);
  const uint32_t word = dropout.drop_below ? dropout.kept_of_pairs<4 * kN>(query, key) : 0;
  TC_UNROLL
  for (int n = 0; n < kN; ++n) {
    const uint32_t bits = dropout.drop_below ? __shfl_sync(kAllLanes, word, 4 * n + lane.column / 2) >> lane.row : 0;
    TC_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int column = 8 * n + lane.column + e;
      const float lse = load(stream.lse(stage), column), delta = load(stream.delta(stage), column);
      const Range seen = masked ? stream.s.seen_by(stream.p, query + column) : Range{0, stream.s.keys};
      TC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = 8 * half + lane.row;
        float &weight = x[0][n][2 * half + e], &dweight = dweights[0][n][2 * half + e];
        float score = weight * scale;
        if (bias) score += load(bias, row - column);
        weight = exp2_approximately(score - lse);
        if (masked && (key + row < seen.begin || key + row >= seen.end)) weight = 0.0f;
        const bool kept = !dropout.drop_below || bits >> (16 * e + 8 * half) & 1u;
        dweight = weight * ((kept ? dweight * dropout.grown : 0.0f) - delta);
        if (!kept) weight = 0.0f;
      }
    }
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks) key_gradient(const AttentionCuda c) {
  using Shape = KeyShape<T, kD>;
  const AttentionParams& p = c.p;
  const Tile tile = Tile::of_block<Shape::kKeys>(p.cu_seqlens_k, int(p.sequences));
  const Sequence s(p, tile.sequence);
  if (tile.first >= s.keys) return;
  TC_SMEM(T, shared);
  const QueryStream<T, kD> stream(c, s, tile.first, shared);
  const int kv_head = int(blockIdx.y), first_row = int(threadIdx.x) / kWarp * Shape::kWarpKeys;
  const int key = tile.first + first_row, key_end = at_most(key + Shape::kWarpKeys, s.keys);
  const Range sees = key < key_end ? s.that_see(p, key, key_end) : Range{0, 0};
  Dropout dropout(c, s.index, 0);
  float dk[1][kD / 8][4], dv[1][kD / 8][4];
  clear(dk);
  clear(dv);
  const auto keys = shared + first_row * kStride<kD>, values = keys + Shape::kKeyTile;
  const auto start = [&] {
    stream.start_keys(shared, p.k_SKD);
    stream.start_keys(shared + Shape::kKeyTile, p.v_SKD);
  };
  stream.for_each(start, [&](int head, int query, int stage) {
    const int end = at_most(query + Shape::kQueries, s.queries);
    if (query >= sees.end || end <= sees.begin) return;
    const bool masked = !s.all_seen(p, query, end, key, key + Shape::kWarpKeys);
    float x[1][Shape::kQueries / 8][4], dscores[1][Shape::kQueries / 8][4];
    multiply<kD>(x, keys, stream.rows(stage));
    multiply<kD>(dscores, values, stream.douts(stage));
    dropout.head = uint32_t(head);
    weights_and_gradients(x, dscores, stream, dropout, query, key, stage, masked);
    add_product<kD>(dv, x, stream.douts(stage));
    add_product<kD>(dk, dscores, stream.rows(stage));
  });
  const float by_dk[1][2] = {{p.scale, p.scale}}, by_dv[1][2] = {{dropout.grown, dropout.grown}};
  const int64_t stride = p.kv_heads * kD, at = (s.first_k + key) * stride + kv_head * kD;
  store_rows<kD>(dk, by_dk, keys, global<T>(p.dk_SKD) + at, stride, s.keys - key);
  store_rows<kD>(dv, by_dv, values, global<T>(p.dv_SKD) + at, stride, s.keys - key);
}

template <class T, int kD>
void launch_key_gradient(const AttentionCuda& c, void* stream) {
  using Shape = KeyShape<T, kD>;
  const dim3 grid(unsigned(attention_slots(c.key_tokens, c.p.sequences, Shape::kKeys)), unsigned(c.p.kv_heads));
  TC_LAUNCH((key_gradient<T, kD>), grid, kAttentionThreads, Shape::kBytes, stream, c);
}

}  // namespace
}  // namespace tunecore::cuda
