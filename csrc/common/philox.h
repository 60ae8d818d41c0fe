// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): counter-based, no state.
// The words are the same as those of tunecore/data/streams.py and tunecore/ops/reference.py.
// May be included by per-ISA files and by CUDA kernels: internal linkage, no STL.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#define TUNECORE_INLINE static inline __attribute__((always_inline)) __host__ __device__
#else
#define TUNECORE_INLINE static inline __attribute__((always_inline))
#endif

namespace tunecore {

struct Philox4 {
  uint32_t w[4];
};

TUNECORE_INLINE Philox4 philox4x32_10(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0;
    const uint64_t b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// Key words of a 64-bit key at a site: sites of one key draw independently.
TUNECORE_INLINE uint32_t philox_site_key(uint64_t key, uint32_t site) {
  return uint32_t(key) ^ (site * 0x9E3779B9u);
}

// Dropout by counter drops where 16 random bits are below `drop_below`, and multiplies what it keeps by this.
TUNECORE_INLINE float keep_scale(uint32_t drop_below) { return 65536.0f / float(65536 - int32_t(drop_below)); }

}  // namespace tunecore
