// Dropout of eight elements in registers, which share the words of one Philox block.
#pragma once
#include "../common/cuda/row_packs.h"
#include "../common/philox.h"
#include "dropout.h"

namespace tunecore::cuda {

// x times the scale where kept, else 0. `p` has site and drop_below; x[0] is element `first`, a multiple of 8.
template <class Params>
__device__ __forceinline__ void drop(float (&x)[kRowPack], uint64_t key, const Params& p, int64_t first) {
  const uint64_t block = uint64_t(first) >> 3;
  const Philox4 r = philox4x32_10(philox_site_key(key, p.site), uint32_t(key >> 32), uint32_t(block),
                                  uint32_t(block >> 32), kDropoutDomain, 0);
  const float scale = keep_scale(p.drop_below);
  for (int i = 0; i < kRowPack; ++i) x[i] = (r.w[i / 2] >> 16 * (i % 2) & 0xFFFFu) >= p.drop_below ? x[i] * scale : 0.0f;
}

}  // namespace tunecore::cuda
