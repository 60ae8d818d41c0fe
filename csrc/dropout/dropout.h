// Dropout by counter: whether an element is kept depends on the key, the site and its index alone.
// May be included by per-ISA files: POD only.
#pragma once
#include <stdint.h>

namespace tunecore {

struct DropoutParams {
  const void* x;
  void* out;  // x of the kept elements times keep_scale (common/philox.h), 0 elsewhere
  int64_t count;
  uint64_t rng_key;
  uint32_t site;
  uint32_t drop_below;  // an element whose 16 random bits are below this is dropped
};

// Elements drawn at once, and the step at which a block may begin.
constexpr int64_t kDropoutStep = 128;
// Third word of the counter: attention has its head there, so that the two never draw the same bits.
constexpr uint32_t kDropoutDomain = 0xFFFFFFFFu;

struct DropoutKernels {
  // Elements [first, last); first is a multiple of kDropoutStep.
  void (*block_f32)(const DropoutParams& p, int64_t first, int64_t last);
  void (*block_bf16)(const DropoutParams& p, int64_t first, int64_t last);
};

extern const DropoutKernels dropout_kernels_default;
extern const DropoutKernels dropout_kernels_avx2;
extern const DropoutKernels dropout_kernels_avx512;

}  // namespace tunecore
