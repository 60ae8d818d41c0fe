// mma and ldmatrix of one warp, by the fragment layouts of the PTX ISA manual (drawn in common/cuda/tensor_core.h).
#pragma once
#include "emulation.h"

namespace tunecore::emulation {

struct MmaSlot {
  float* d;
  const uint32_t *a, *b;
  float (*widen)(uint16_t);
};

inline void complete_mma(void* const* slots) {
  float a[16][16], b[16][8];
  const auto lane_of = [&](int lane) { return static_cast<MmaSlot*>(slots[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const MmaSlot& s = *lane_of(lane);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][2 * t + half + r / 2 * 8] = s.widen(uint16_t(s.a[r] >> 16 * half));
      for (int r = 0; r < 2; ++r) b[2 * t + half + r * 8][g] = s.widen(uint16_t(s.b[r] >> 16 * half));
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
      for (int k = 0; k < 16; ++k) lane_of(lane)->d[r] += a[row][k] * b[k][column];
    }
}

inline void mma(const Site& site, float* d, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t)) {
  MmaSlot slot{d, a, b, widen};
  collective(site, 0xFFFFFFFFu, &slot, complete_mma);
}

struct LdmatrixSlot {
  uint32_t* r;
  int tiles;
  bool transposed;
  const char* row;
};

inline void complete_ldmatrix(void* const* slots) {
  for (int lane = 0; lane < 32; ++lane) {
    const LdmatrixSlot& mine = *static_cast<LdmatrixSlot*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int tile = 0; tile < mine.tiles; ++tile) {
      uint16_t pair[2];
      for (int half = 0; half < 2; ++half) {
        const int row = mine.transposed ? 2 * t + half : g, column = mine.transposed ? g : 2 * t + half;
        memcpy(&pair[half], static_cast<LdmatrixSlot*>(slots[8 * tile + row])->row + 2 * column, 2);
      }
      mine.r[tile] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
    }
  }
}

// The addresses of lanes past 8 * tiles are not looked at, as on the device.
inline void ldmatrix(const Site& site, uint32_t* r, int tiles, bool transposed, Region* region, const void* row) {
  if (lane() < 8 * tiles) {
    if (region != shared_region()) fail("ldmatrix of what is not shared memory");
    touch(region, row, 16, Touch::read);
  }
  LdmatrixSlot slot{r, tiles, transposed, static_cast<const char*>(row)};
  collective(site, 0xFFFFFFFFu, &slot, complete_ldmatrix);
}

}  // namespace tunecore::emulation
