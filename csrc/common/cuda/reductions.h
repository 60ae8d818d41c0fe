// Sums and maxima over a warp and over a block, the same on every run: fixed trees.
#pragma once
#include "memory.h"

namespace tunecore::cuda {

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Every thread's x of a one-dimensional block of whole warps, summed; all threads get the sum. `scratch` holds one float
// a warp; the barriers at both ends let calls follow one another.
__device__ __forceinline__ float block_sum(Shared<float> scratch, float x) {
  const int warps = int(blockDim.x) / kWarp;
  x = warp_sum(x);
  if (warps == 1) return x;
  if (threadIdx.x % kWarp == 0) store(scratch, threadIdx.x / kWarp, x);
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < warps; ++w) sum += load(scratch, w);
  __syncthreads();
  return sum;
}

}  // namespace tunecore::cuda
