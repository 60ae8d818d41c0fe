// Tiles of rows in shared memory and the products of a warp over them. A warp has kM tiles of 16 rows; its sums are
// x[m][n][4], the fragment D of tensor_core.h for columns 8 n .. 8 n + 7.
#pragma once
#include "../../common/cuda/tensor_core.h"
#include "sequence.h"

namespace tunecore::cuda {
namespace {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
// Of an SM at least: told so, the compiler does not spill registers for the sake of a third.
constexpr int kAttentionBlocks = 2;

// Elements from one row of a tile to the next: an odd number of 16 bytes, so that the rows of an ldmatrix lie in banks of
// their own.
template <int kD>
constexpr int kStride = kD + 8;

template <class T>
__device__ __forceinline__ Global<const T> row_of(const AttentionRows& x, int64_t token, int64_t head) {
  return global<const T>(x.data) + token * x.token_stride + head * x.head_stride;
}

// Start to copy rows [first, first + kRows), those from `count` on as zeros; by all threads of the block.
template <int kRows, int kD, class T>
__device__ __forceinline__ void copy_rows(Shared<T> tile, Global<const T> rows, int64_t stride, int first, int count) {
  constexpr int kPacks = kD / 8;
  for (int n = int(threadIdx.x); n < kRows * kPacks; n += kAttentionThreads) {
    const int row = n / kPacks, d = n % kPacks * 8;
    const bool valid = first + row < count;
    cp_async_16(tile + (row * kStride<kD> + d), rows + (valid ? (first + row) * stride + d : 0), valid);
  }
}

template <int kM, int kN>
__device__ __forceinline__ void clear(float (&x)[kM][kN][4]) {
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int n = 0; n < kN; ++n)
      TC_UNROLL
      for (int i = 0; i < 4; ++i) x[m][n][i] = 0.0f;
}

// d[n], d[n + 1] += a b for two fragments of b that one ldmatrix brought.
template <class T, int kN>
__device__ __forceinline__ void mma_pair(float (&d)[kN][4], int n, const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
  mma_16x8x16<T>(d[n], a, low);
  mma_16x8x16<T>(d[n + 1], a, high);
}

// x = A B^T: A the rows of this warp, B the 8 kN rows of a tile.
template <int kD, class T, int kM, int kN>
__device__ __forceinline__ void multiply(float (&x)[kM][kN][4], Shared<T> a_rows, Shared<T> b_rows) {
  const int lane = Lane().index;
  const int a_at = lane % 16 * kStride<kD> + lane / 16 * 8;
  const int b_at = (lane / 16 * 8 + lane % 8) * kStride<kD> + lane / 8 % 2 * 8;
  clear(x);
  TC_UNROLL
  for (int d = 0; d < kD; d += 16) {
    uint32_t a[kM][4];
    TC_UNROLL
    for (int m = 0; m < kM; ++m) ldmatrix<false>(a[m], a_rows + (a_at + 16 * m * kStride<kD> + d));
    TC_UNROLL
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      ldmatrix<false>(b, b_rows + (b_at + 8 * n * kStride<kD> + d));
      TC_UNROLL
      for (int m = 0; m < kM; ++m) mma_pair<T>(x[m], n, a[m], b);
    }
  }
}

// sums += W B: W the 16 kM x 8 kN numbers of this warp, rounded to T; B the 8 kN rows of a tile.
template <int kD, class T, int kM, int kN>
__device__ __forceinline__ void add_product(float (&sums)[kM][kD / 8][4], const float (&w)[kM][kN][4], Shared<T> b_rows) {
  const int lane = Lane().index, b_at = lane % 16 * kStride<kD> + lane / 16 * 8;
  TC_UNROLL
  for (int n = 0; n < kN; n += 2) {
    uint32_t a[kM][4];
    TC_UNROLL
    for (int m = 0; m < kM; ++m)
      TC_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float(&from)[4] = w[m][n + r / 2];
        a[m][r] = pair_of<T>(from[r % 2 * 2], from[r % 2 * 2 + 1]);
      }
    TC_UNROLL
    for (int d = 0; d < kD / 8; d += 2) {
      uint32_t b[4];
      ldmatrix<true>(b, b_rows + (b_at + 8 * n * kStride<kD> + 8 * d));
      TC_UNROLL
      for (int m = 0; m < kM; ++m) mma_pair<T>(sums[m], d, a[m], b);
    }
  }
}

// The first `count` rows of a warp's sums, row 16 m + 8 half + g times by[m][half], to memory: through the warp's rows of
// a tile that no other warp reads, so that whole packs are written.
template <int kD, class T, int kM>
__device__ __forceinline__ void store_rows(const float (&sums)[kM][kD / 8][4], const float (&by)[kM][2], Shared<T> tile,
                                           Global<T> rows, int64_t stride, int count) {
  constexpr int kPacks = kD / 8;
  const Lane lane;
  __syncwarp();
  TC_UNROLL
  for (int m = 0; m < kM; ++m)
    TC_UNROLL
    for (int half = 0; half < 2; ++half)
      TC_UNROLL
      for (int n = 0; n < kPacks; ++n) {
        Pack<T, 2> pair;
        TC_UNROLL
        for (int e = 0; e < 2; ++e) pair.v[e] = from_float<T>(sums[m][n][2 * half + e] * by[m][half]);
        store_pack(tile, (16 * m + 8 * half + lane.row) * kStride<kD> + 8 * n + lane.column, pair);
      }
  __syncwarp();
  for (int n = lane.index; n < at_most(count, 16 * kM) * kPacks; n += kWarp) {
    const int row = n / kPacks, d = n % kPacks * 8;
    store_pack(rows, row * stride + d, load_pack<8>(tile, row * kStride<kD> + d));
  }
}

// One half of a warp's rows, at the keys from `key` on that it does not see.
template <int kN>
__device__ __forceinline__ void set_unseen(float (&x)[kN][4], int half, Range seen, int key, float value) {
  const Lane lane;
  TC_UNROLL
  for (int n = 0; n < kN; ++n)
    TC_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int j = key + 8 * n + lane.column + e;
      if (j < seen.begin || j >= seen.end) x[n][2 * half + e] = value;
    }
}

// Of the four lanes of a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

}  // namespace
}  // namespace tunecore::cuda
