// One pass over memory: a launch takes as many tensors as its parameters hold, a block a stretch of one of them.
#include "adamw_cuda.h"

#include "../common/cuda/entry.h"
#include "../common/cuda/numbers.h"

namespace tunecore::cuda {
namespace {

constexpr int kThreads = 256, kPack = 4;
constexpr int64_t kStretch = 4 * kThreads * kPack;
constexpr int kMostTensors = 48;  // parameters of a kernel are at most 4 KiB

struct AdamWLaunch {
  AdamWTensor tensors[kMostTensors];
  int64_t first_block[kMostTensors + 1];  // of each tensor, then the number of blocks
  AdamWParams p;
  int32_t count;
};
static_assert(sizeof(AdamWLaunch) <= 4096, "the parameters of a kernel");

__device__ __forceinline__ void step(const AdamWTensor& x, const AdamWParams& p, float gradient, float& mean,
                                     float& square, float& weight) {
  gradient *= p.scale;
  mean = fmaf(p.rest1, gradient - mean, mean);
  square = fmaf(p.beta2, square, p.rest2 * gradient * gradient);
  weight = weight * x.keep - x.step_size * mean / fmaf(sqrtf(square), x.root, p.eps);
}

template <int N>
__device__ __forceinline__ void elements(const AdamWTensor& x, const AdamWParams& p, int64_t i) {
  const auto mean = global<float>(x.mean), square = global<float>(x.square), weight = global<float>(x.weight);
  const auto gradient = load_pack<N>(global<const float>(x.gradient), i);
  auto m = load_pack<N>(mean, i), s = load_pack<N>(square, i), w = load_pack<N>(weight, i);
  for (int k = 0; k < N; ++k) step(x, p, gradient.v[k], m.v[k], s.v[k], w.v[k]);
  store_pack(mean, i, m);
  store_pack(square, i, s);
  store_pack(weight, i, w);
  if (!x.rounded) return;
  Pack<bf16, N> r;
  for (int k = 0; k < N; ++k) r.v[k] = from_float<bf16>(w.v[k]);
  store_pack(global<bf16>(x.rounded), i, r);
}

__device__ __forceinline__ bool aligned(const AdamWTensor& x) {
  const auto bits = reinterpret_cast<uintptr_t>(x.weight) | reinterpret_cast<uintptr_t>(x.gradient) |
                    reinterpret_cast<uintptr_t>(x.mean) | reinterpret_cast<uintptr_t>(x.square) |
                    reinterpret_cast<uintptr_t>(x.rounded) * 2;
  return bits % 16 == 0;
}

__global__ void __launch_bounds__(kThreads) adamw(const AdamWLaunch c) {
  int n = 0;
  while (n + 1 < c.count && int64_t(blockIdx.x) >= c.first_block[n + 1]) ++n;
  const AdamWTensor& x = c.tensors[n];
  const int64_t first = (int64_t(blockIdx.x) - c.first_block[n]) * kStretch;
  const int64_t last = first + kStretch < x.count ? first + kStretch : x.count;
  const int64_t whole = aligned(x) ? first + (last - first) / kPack * kPack : first;
  for (int64_t i = first + threadIdx.x * kPack; i < whole; i += kThreads * kPack) elements<kPack>(x, c.p, i);
  for (int64_t i = whole + threadIdx.x; i < last; i += kThreads) elements<1>(x, c.p, i);
}

}  // namespace
}  // namespace tunecore::cuda

using namespace tunecore;
using namespace tunecore::cuda;

TUNECORE_CUDA_ENTRY tunecore_cuda_adamw(const AdamWCuda* c, void* stream) {
  return on_device(c->device, [&] {
    AdamWLaunch next{};
    next.p = c->p;
    int64_t blocks = 0;
    const auto send = [&] {
      next.first_block[next.count] = blocks;
      if (blocks) TC_LAUNCH(adamw, unsigned(blocks), kThreads, 0, stream, next);
      blocks = next.count = 0;
    };
    for (int64_t i = 0; i < c->count; ++i) {
      const AdamWTensor& x = c->tensors[i];
      if (x.count == 0) continue;
      const int64_t more = (x.count + kStretch - 1) / kStretch;
      if (next.count == kMostTensors || blocks + more > 0x7FFFFFFF) send();
      next.tensors[next.count] = x;
      next.first_block[next.count++] = blocks;
      blocks += more;
    }
    send();
  });
}
