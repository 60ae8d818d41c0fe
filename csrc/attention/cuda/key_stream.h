// The tiles of keys and values that a block with a tile of queries goes over. There are two stages of them, so that the
// copy of the next tile runs while one is computed with: one barrier a tile.
#pragma once
#include "products.h"

namespace tunecore::cuda {
namespace {

template <class T, int kD, int kQueries, int kKeys>
struct KeyStream {
  static constexpr int kTile = kKeys * kStride<kD>, kElements = 4 * kTile;
  static constexpr int kDistances = kQueries + kKeys;  // that a tile of scores has, and one

  __host__ __device__ static int floats(const AttentionParams& p) { return has_bias(p) ? 2 * kDistances : 0; }

  const AttentionParams& p;
  const Sequence& s;
  const int head, first, last;  // queries of the block
  const Shared<T> tiles;
  const Shared<float> biases;
  const Global<const T> key_rows, value_rows;

  __device__ __forceinline__ KeyStream(const AttentionParams& params, const Sequence& sequence, int first_query,
                                       Shared<T> of_tiles, Shared<float> of_biases)
      : p(params), s(sequence), head(int(blockIdx.y)), first(first_query),
        last(at_most(first_query + kQueries, sequence.queries)), tiles(of_tiles), biases(of_biases),
        key_rows(row_of<T>(p.k_SKD, s.first_k, head / int(p.heads / p.kv_heads))),
        value_rows(row_of<T>(p.v_SKD, s.first_k, head / int(p.heads / p.kv_heads))) {}

  __device__ __forceinline__ Shared<T> keys(int stage) const { return tiles + 2 * stage * kTile; }
  __device__ __forceinline__ Shared<T> values(int stage) const { return tiles + (2 * stage + 1) * kTile; }
  // Of the distance from a query to the first key of a tile; null without a bias.
  __device__ __forceinline__ Shared<float> bias(int stage, int query) const {
    if (!has_bias(p)) return {};
    return biases + (stage * kDistances + kQueries - 1 - (query - first));
  }

  __device__ __forceinline__ void start(int key, int stage) const {
    copy_rows<kKeys, kD>(keys(stage), key_rows, p.k_SKD.token_stride, key, s.keys);
    copy_rows<kKeys, kD>(values(stage), value_rows, p.v_SKD.token_stride, key, s.keys);
    cp_async_commit();
    const int nearest = key - s.place(first + kQueries - 1);
    if (has_bias(p)) fill_bias(p, biases + stage * kDistances, head, nearest, kDistances - 1);
  }

  // Start to copy the block's rows of such a tensor.
  __device__ __forceinline__ void start_queries(Shared<T> tile, const AttentionRows& x_THD) const {
    copy_rows<kQueries, kD>(tile, row_of<T>(x_THD, s.first_q, head), x_THD.token_stride, first, s.queries);
  }

  // body(key, stage, masked) for the tiles that any of the warp's queries [query, query + rows) sees. Not all warps of a
  // block come to the same tiles: body has no barrier. first_copies() starts what body needs beside a tile.
  template <class First, class Body>
  __device__ __forceinline__ void for_each(int query, int rows, const First& first_copies, const Body& body) const {
    const Range block_sees = s.seen_by(p, first, last);
    const int end = at_most(query + rows, last);
    const Range sees = query < end ? s.seen_by(p, query, end) : Range{0, 0};
    int key = block_sees.begin / kKeys * kKeys;
    if (key < block_sees.end) first_copies(), start(key, 0);
    for (int stage = 0; key < block_sees.end; key += kKeys, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();
      if (key + kKeys < block_sees.end) start(key + kKeys, stage ^ 1);
      if (key < sees.end && key + kKeys > sees.begin) body(key, stage, !s.all_seen(p, query, end, key, key + kKeys));
    }
  }
};

}  // namespace
}  // namespace tunecore::cuda
