// Small matrix products for kernels that keep their operands in cache: C[M, N] (+)= A[M, K] B[K, N], float32 sums.
//
// Operands are made of 32-bit *units* along K: one float (FloatUnit), or two adjacent bf16 (Bf16Unit of units_bf16.h),
// whose product with another unit is a dot product of two. A may lie anyhow: unit (m, k) is at a + m * sm + k * sk
// bytes, so that A and its transpose are read alike. B has N units of one k adjacent. U is a unit on a trait (isa_*.h).
// A unit says how a product of it may be cut: N and K * kPair are multiples of kStep; A, C have rows up to a multiple of
// kRowStep, those of C past M are spoilt. Where kRowStep is not 1 (products_tiles.h), sk is 4.
// Internal linkage: for per-ISA files.
#pragma once
#include <stdint.h>
#include <string.h>

#include "ahead.h"

namespace tunecore {
namespace {

template <class IsaT>
struct FloatUnit {
  using Isa = IsaT;
  using F = typename Isa::F;
  static constexpr int kPair = 1, kStep = Isa::kLanes, kRowStep = 1;

  static F broadcast(const char* a) {
    float x;
    memcpy(&x, a, 4);
    return Isa::set(x);
  }
  static F load(const uint32_t* b) { return Isa::load(reinterpret_cast<const float*>(b)); }
  static void store(uint32_t* b, F units) { Isa::store(reinterpret_cast<float*>(b), units); }
  static F dot(F sum, F a, F b) { return Isa::fma(a, b, sum); }
  // kLanes units along a row, from element `first`; `count` of them exist.
  template <class S>
  static F along(const S* row, int64_t first, int64_t count) {
    (void)count;
    return Isa::load(row + first);
  }
  // kLanes units across kPair rows.
  template <class S>
  static F across(const S* const* rows, int64_t first) {
    return Isa::load(rows[0] + first);
  }
  // kLanes elements of a row of A, from element `first`.
  static void put(char* row, int64_t first, F x) { Isa::store(reinterpret_cast<float*>(row) + first, x); }
  // kLanes units of kPair rows of A transposed.
  static void put_across(uint32_t* units, const F* rows) { store(units, rows[0]); }
};

template <class U, class S>
constexpr bool is_unit_storage() {  // rows of S can be read as units where they lie
  return sizeof(S) * U::kPair == 4;
}

// C[R, N vectors], each vector handed to `out(row, column, vector)`: all sums in registers. They start from C where it is
// added to.
template <class U, int R, int N, class Out>
__attribute__((noinline)) void tile(int64_t depth, const char* a, int64_t sm, int64_t sk, const uint32_t* b,
                                    int64_t ldb, const float* c, int64_t ldc, bool add, const Out& out) {
  using Isa = typename U::Isa;
  constexpr int L = Isa::kLanes;
  typename Isa::F sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n] = add ? Isa::load(c + r * ldc + n * L) : Isa::set(0.0f);
  for (int64_t k = 0; k < depth; ++k, a += sk, b += ldb) {
    typename Isa::F column[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) column[n] = U::load(b + n * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Isa::F x = U::broadcast(a + r * sm);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = U::dot(sum[r][n], x, column[n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) out(r, n * L, sum[r][n]);
}

// The rows of C one tile after the other; `out_from(row)` makes what tile() hands the vectors to.
template <class U, int N, class OutFrom>
void tile_column(int64_t rows, int64_t depth, const char* a, int64_t sm, int64_t sk, const uint32_t* b, int64_t ldb,
                 const float* c, int64_t ldc, bool add, const OutFrom& out_from) {
  constexpr int kMost = N == U::Isa::kVectors ? U::Isa::kRows : 8;
  int64_t r = 0;
  for (; rows - r >= kMost; r += kMost)
    tile<U, kMost, N>(depth, a + r * sm, sm, sk, b, ldb, c + r * ldc, ldc, add, out_from(r));
  if constexpr (kMost > 4)
    for (; rows - r >= 4; r += 4)
      tile<U, 4, N>(depth, a + r * sm, sm, sk, b, ldb, c + r * ldc, ldc, add, out_from(r));
  for (; rows - r >= 2; r += 2)
    tile<U, 2, N>(depth, a + r * sm, sm, sk, b, ldb, c + r * ldc, ldc, add, out_from(r));
  if (r < rows) tile<U, 1, N>(depth, a + r * sm, sm, sk, b, ldb, c + r * ldc, ldc, add, out_from(r));
}

// What hands the vectors of tiles to rows of floats; `ahead` may be NULL.
template <class Isa>
struct IntoRows {
  float* c;
  int64_t stride;
  Ahead* ahead;
  IntoRows operator()(int64_t row) const {
    if (ahead) ahead->step();
    return {c + row * stride, stride, nullptr};
  }
  void operator()(int64_t row, int64_t column, typename Isa::F x) const { Isa::store(c + row * stride + column, x); }
};

template <class U>
struct Product {
  int64_t rows, depth;  // M, and K in units
  const char* a;
  int64_t sm, sk;  // bytes
  float* c;
  int64_t ldc;
  bool add;
  Ahead* ahead = nullptr;  // what to ask for meanwhile

  static constexpr int64_t kLanes = U::Isa::kLanes;
  static constexpr int64_t kPanel = kLanes * U::Isa::kVectors;

  // Columns [0, columns) of row-major B[K, ldb]; columns is a multiple of kLanes.
  void with(const uint32_t* b, int64_t ldb, int64_t columns) const {
    for (int64_t n = 0; n < columns; n += kPanel) block(b + n, ldb, n, columns - n < kPanel ? columns - n : kPanel);
  }

  // Columns [first, last) of a B that pack_columns made; C starts at column `first`. Both are multiples of kLanes.
  void with_panels(const uint32_t* panels, int64_t first, int64_t last) const {
    for (int64_t n = first; n < last;) {
      const int64_t inside = n % kPanel, width = last - n < kPanel - inside ? last - n : kPanel - inside;
      block(panels + (n - inside) * depth + inside, kPanel, n - first, width);
      n += width;
    }
  }

 private:
  void block(const uint32_t* b, int64_t ldb, int64_t column, int64_t width) const {
    constexpr int V = U::Isa::kVectors;
    float* const at = c + column;
    const IntoRows<typename U::Isa> out{at, ldc, ahead};
    switch (width / kLanes) {
      case 1:
        return tile_column<U, 1>(rows, depth, a, sm, sk, b, ldb, at, ldc, add, out);
      case 2:
        return tile_column<U, 2>(rows, depth, a, sm, sk, b, ldb, at, ldc, add, out);
      case 3:
        if constexpr (V >= 3) return tile_column<U, 3>(rows, depth, a, sm, sk, b, ldb, at, ldc, add, out);
        [[fallthrough]];
      default:
        if constexpr (V >= 4) return tile_column<U, 4>(rows, depth, a, sm, sk, b, ldb, at, ldc, add, out);
    }
  }
};

// B = X transposed: column n of B is row n of X [rows, width], in panels of kPanel columns, [width / kPair][kPanel]
// units each. Columns up to the next multiple of kLanes are zero. Width is a multiple of 16.
template <class U, class S>
void pack_columns(const S* x, int64_t stride, int64_t rows, int64_t width, uint32_t* panels) {
  using F = typename U::Isa::F;
  constexpr int64_t L = U::Isa::kLanes, P = Product<U>::kPanel;
  const int64_t depth = width / U::kPair;
  for (int64_t n = 0; n < rows; n += L) {
    uint32_t* const out = panels + (n - n % P) * depth + n % P;
    for (int64_t k = 0; k < depth; k += L) {
      const int64_t count = depth - k < L ? depth - k : L;
      F block[L];
      for (int64_t i = 0; i < L; ++i)
        block[i] = n + i < rows ? U::along(x + (n + i) * stride, k * U::kPair, count) : U::Isa::set(0.0f);
      U::Isa::transpose(block);
      for (int64_t i = 0; i < count; ++i) U::store(out + (k + i) * P, block[i]);
    }
  }
}

// The kPair rows of X from row `r`; those past `rows` are zero. Widths up to 256.
template <class U, class S>
struct RowPair {
  const S* rows[2];
  RowPair(const S* x, int64_t stride, int64_t r, int64_t count) {
    static const S zeros[256] = {};
    for (int64_t i = 0; i < 2; ++i) rows[i] = r + i < count ? x + (r + i) * stride : zeros;
  }
  typename U::F units(int64_t first) const { return U::across(rows, first); }
};

// B = X: [ceil(rows / kPair)][width] units; missing rows of `padded` are zero. Width and `padded` suit kLanes, kPair.
template <class U, class S>
void pack_rows(const S* x, int64_t stride, int64_t rows, int64_t padded, int64_t width, uint32_t* out) {
  for (int64_t r = 0; r < padded; r += U::kPair, out += width) {
    const RowPair<U, S> pair(x, stride, r, rows);
    for (int64_t d = 0; d < width; d += U::Isa::kLanes) U::store(out + d, pair.units(d));
  }
}

}  // namespace
}  // namespace tunecore
