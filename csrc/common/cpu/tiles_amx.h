// Tiles of products_tiles.h in the registers of Intel AMX. Internal linkage: for per-ISA files.
#pragma once
#include <immintrin.h>

#include "products_tiles.h"
#include "units_bf16.h"

namespace tunecore {
namespace {

struct AmxTiles {
  // Registers 0 to 3 are C, 4 and 5 are A, 6 and 7 are B. Other libraries set up their own before they multiply; those of
  // ours are given up at the end, so that a switch of threads need not save 8 KiB.
  static void open() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    _tile_loadconfig(&config);
  }
  static void close() { _tile_release(); }

  static __attribute__((noinline)) void block_16(const TileBlock& t) {
    seen_by_tiles();
    const char *a = t.a, *b = t.b;
    if (t.add) {
      _tile_loadd(0, t.c, t.c_stride);
      _tile_loadd(1, t.c + 16, t.c_stride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    for (int64_t k = 0; k < t.steps; ++k, a += 64, b += 16 * t.b_stride) {
      _tile_loadd(6, b, t.b_stride);
      _tile_loadd(4, a, t.a_stride);
      _tile_loadd(7, b + 64, t.b_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, t.c, t.c_stride);
    _tile_stored(1, t.c + 16, t.c_stride);
  }

  static __attribute__((noinline)) void block_32(const TileBlock& t) {
    block_32(t, [] {});
  }

  template <class Aside>
  static __attribute__((always_inline)) void block_32(const TileBlock& t, const Aside& aside) {
    seen_by_tiles();
    const char *a = t.a, *b = t.b;
    char* const c = reinterpret_cast<char*>(t.c);
    const int64_t down = 16 * t.c_stride;
    if (t.add) {
      _tile_loadd(0, c, t.c_stride);
      _tile_loadd(1, c + 64, t.c_stride);
      _tile_loadd(2, c + down, t.c_stride);
      _tile_loadd(3, c + down + 64, t.c_stride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < t.steps; ++k, a += 64, b += 16 * t.b_stride) {
      for (int64_t i = 0; i < 16; ++i) {  // B of the next step streams from the second-level cache
        _mm_prefetch(b + (16 + i) * t.b_stride, _MM_HINT_T0);
        _mm_prefetch(b + (16 + i) * t.b_stride + 64, _MM_HINT_T0);
      }
      aside();
      _tile_loadd(6, b, t.b_stride);
      _tile_loadd(4, a, t.a_stride);
      _tile_loadd(7, b + 64, t.b_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + 16 * t.a_stride, t.a_stride);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, t.c_stride);
    _tile_stored(1, c + 64, t.c_stride);
    _tile_stored(2, c + down, t.c_stride);
    _tile_stored(3, c + down + 64, t.c_stride);
  }

 private:
  // GCC's tile loads do not say that they read memory: what was stored before must not be put off past them.
  static void seen_by_tiles() { __asm__ volatile("" ::: "memory"); }
};

using AmxUnit = TileUnit<Bf16Unit, AmxTiles>;

}  // namespace
}  // namespace tunecore
