// Products of bf16 in tile registers (Intel AMX, or what stands for them), for a unit of pairs: see products.h.
//
// A tile is sixteen rows of 64 bytes. One instruction adds the product of a tile of A (16 rows x 32 elements) and a tile
// of B (16 pairs x 16 columns) to a tile of C (16 x 16 float32), pair after pair along K. Two tiles of A against two of
// B are held at once, so that each is loaded for two products. Internal linkage: for per-ISA files.
#pragma once
#include "products.h"

namespace tunecore {
namespace {

// C[16 or 32, 32] (+)= A B over `steps` x 32 elements; strides are in bytes.
struct TileBlock {
  int64_t steps;
  const char *a, *b;
  float* c;
  int64_t a_stride, b_stride, c_stride;
  bool add;
};

// Pairs: a unit of two bf16 that packs. Tiles: block_16 and block_32 multiply a TileBlock of so many rows, between open(),
// which sets the registers of this thread up, and close().
template <class Pairs, class Tiles>
struct TileUnit : Pairs {
  static constexpr int kStep = 32, kRowStep = 16;
  static constexpr int64_t kPanel = 32;
  static void open() { Tiles::open(); }
  static void close() { Tiles::close(); }
  // C[rows up to 32, kPanel] (+)= A B over `steps` x 32 elements: A has rows up to 16 or 32 of `width` elements, B is a
  // panel. Of more than 16 rows `aside` is called at every step.
  template <class Aside>
  static void block(int64_t rows, int64_t steps, const uint16_t* a, int64_t width, const uint32_t* panel, float* c,
                    int64_t ldc, bool add, const Aside& aside) {
    const TileBlock t{steps,     reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(panel), c,
                      width * 2, kPanel * 4,                       ldc * 4,                              add};
    if (rows > 16)
      Tiles::block_32(t, aside);
    else
      Tiles::block_16(t);
  }
};

template <class Pairs, class Tiles>
struct Product<TileUnit<Pairs, Tiles>> {
  int64_t rows, depth;
  const char* a;
  int64_t sm, sk;
  float* c;
  int64_t ldc;
  bool add;
  Ahead* ahead = nullptr;

  static constexpr int64_t kLanes = Pairs::Isa::kLanes;
  static constexpr int64_t kPanel = TileUnit<Pairs, Tiles>::kPanel;

  void with(const uint32_t* b, int64_t ldb, int64_t columns) const {
    for (int64_t n = 0; n < columns; n += 32) column(b + n, ldb, n);
  }

  void with_panels(const uint32_t* panels, int64_t first, int64_t last) const {
    for (int64_t n = first; n < last; n += 32)
      column(panels + (n - n % kPanel) * depth + n % kPanel, kPanel, n - first);
  }

 private:
  void column(const uint32_t* b, int64_t ldb, int64_t n) const {
    for (int64_t m = 0; m < rows; m += 32) {
      const TileBlock block{depth / 16, a + m * sm, reinterpret_cast<const char*>(b), c + m * ldc + n,
                            sm,         ldb * 4,    ldc * 4,                          add};
      if (ahead) ahead->step();
      if (rows - m > 16)
        Tiles::block_32(block);
      else
        Tiles::block_16(block);
    }
  }
};

}  // namespace
}  // namespace tunecore
