// Rows taken in packs of eight elements as floats: 16-byte moves where rows are whole packs and aligned, else element by
// element with the end of the row as zeros.
#pragma once
#include "numbers.h"

namespace tunecore::cuda {

constexpr int kRowPack = 8;

// Whether all these pointers (null or not) and rows of `width` elements allow whole packs.
template <class... Pointers>
bool whole_packs(int64_t width, Pointers... pointers) {
  return width % kRowPack == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

template <bool kWhole, class T>
__device__ __forceinline__ void load_row_pack(float (&out)[kRowPack], Global<const T> row, int e, int width) {
  if (kWhole && e < width) {
    const Pack<T, kRowPack> pack = load_pack<kRowPack>(row, e);
    for (int i = 0; i < kRowPack; ++i) out[i] = to_float(pack.v[i]);
  } else {
    for (int i = 0; i < kRowPack; ++i) out[i] = !kWhole && e + i < width ? to_float(load(row, e + i)) : 0.0f;
  }
}

template <bool kWhole, class T>
__device__ __forceinline__ void store_row_pack(Global<T> row, int e, int width, const float (&x)[kRowPack]) {
  if (kWhole) {
    if (e >= width) return;
    Pack<T, kRowPack> pack;
    for (int i = 0; i < kRowPack; ++i) pack.v[i] = from_float<T>(x[i]);
    store_pack(row, e, pack);
  } else {
    for (int i = 0; i < kRowPack; ++i)
      if (e + i < width) store(row, e + i, from_float<T>(x[i]));
  }
}

}  // namespace tunecore::cuda
