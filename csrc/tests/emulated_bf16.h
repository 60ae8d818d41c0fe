// bf16 pairs and tiles of them multiplied in plain C++: the layouts of Bf16Unit and AmxUnit, on any machine.
#pragma once
#include <math.h>

#include "../common/cpu/isa_default.h"
#include "../common/cpu/products_tiles.h"
#include "bf16.h"

namespace tunecore {
namespace {

using Isa = IsaDefault;

struct UnitOfBf16 {
  using Isa = IsaDefault;
  using F = IsaDefault::F;
  using U = IsaDefault::U;
  static constexpr int kPair = 2, kStep = Isa::kLanes, kRowStep = 1;

  static F bits(U x) {
    F out;
    memcpy(&out, &x, 16);
    return out;
  }
  static U bits(F x) {
    U out;
    memcpy(&out, &x, 16);
    return out;
  }
  static F broadcast(const char* a) {
    uint32_t x;
    memcpy(&x, a, 4);
    return bits(U{x, x, x, x});
  }
  static F load(const uint32_t* b) { return Isa::load(reinterpret_cast<const float*>(b)); }
  static void store(uint32_t* b, F units) { Isa::store(reinterpret_cast<float*>(b), units); }
  static F dot(F sum, F a, F b) {
    const U high = U{} + 0xFFFF0000u;
    sum = sum + bits(bits(a) & high) * bits(bits(b) & high);
    return sum + bits(bits(a) << 16) * bits(bits(b) << 16);
  }
  static F along(const uint16_t* row, int64_t first, int64_t) {
    F out;
    memcpy(&out, row + first, 16);
    return out;
  }
  static F across(const uint16_t* const* rows, int64_t first) {
    U out{};
    for (int i = 0; i < 4; ++i) out[i] = rows[0][first + i] | uint32_t(rows[1][first + i]) << 16;
    return bits(out);
  }
  static void put(char* row, int64_t first, F x) { Isa::store(reinterpret_cast<uint16_t*>(row) + first, x); }
  static void put_across(uint32_t* units, const F* rows) {
    uint16_t low[4], high[4];
    Isa::store(low, rows[0]);
    Isa::store(high, rows[1]);
    for (int i = 0; i < 4; ++i) units[i] = low[i] | uint32_t(high[i]) << 16;
  }
};

// A block is spoilt unless the registers were set up once.
struct PlainTiles {
  static thread_local int opened;
  static void open() { ++opened; }
  static void close() { --opened; }

  static void block_16(const TileBlock& t) { block(t, 16); }
  static void block_32(const TileBlock& t) { block(t, 32); }
  template <class Aside>
  static void block_32(const TileBlock& t, const Aside& aside) {
    for (int64_t k = 0; k < t.steps; ++k) aside();
    block(t, 32);
  }

 private:
  static void block(const TileBlock& t, int64_t rows) {
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < 32; ++n) {
        float& c = *reinterpret_cast<float*>(reinterpret_cast<char*>(t.c) + m * t.c_stride + n * 4);
        float sum = opened == 1 ? (t.add ? c : 0.0f) : NAN;
        for (int64_t k = 0; k < 16 * t.steps; ++k) {
          uint16_t a[2], b[2];
          memcpy(a, t.a + m * t.a_stride + k * 4, 4);
          memcpy(b, t.b + k * t.b_stride + n * 4, 4);
          for (int i = 0; i < 2; ++i) sum += tests::from_bf16(a[i]) * tests::from_bf16(b[i]);
        }
        c = sum;
      }
  }
};
thread_local int PlainTiles::opened = 0;

using TilesOfBf16 = TileUnit<UnitOfBf16, PlainTiles>;

}  // namespace

}  // namespace tunecore
