// The last step of a sum over rows: each block of a kernel has written one partial sum a column, these are added in the
// order of the blocks, so the result is the same on every run.
#pragma once
#include "entry.h"
#include "memory.h"

namespace tunecore::cuda {

struct ColumnSums {
  const float* parts_BC;
  float* sums_C;
  int64_t parts, columns;
};

namespace {

constexpr int kSumGroups = 8;

// In the first warp of a block of kSumGroups, a lane a column: the sum of parts [first, last). Every thread of the block
// comes here; `sums` holds a float for each.
__device__ __forceinline__ float sum_of_parts(Shared<float> sums, const float* parts, int64_t first, int64_t last,
                                              int64_t columns, int64_t column) {
  const auto parts_BC = global<const float>(parts);
  const int lane = int(threadIdx.x) % kWarp, group = int(threadIdx.x) / kWarp;
  float sum = 0.0f;
  if (column < columns)
    for (int64_t part = first + group; part < last; part += kSumGroups) sum += load(parts_BC, part * columns + column);
  store(sums, group * kWarp + lane, sum);
  __syncthreads();
  if (group) return 0.0f;
  for (int g = 1; g < kSumGroups; ++g) sum += load(sums, g * kWarp + lane);
  return sum;
}

__global__ void __launch_bounds__(kWarp* kSumGroups) add_parts(const ColumnSums p) {
  TC_SMEM(float, sums);
  const int64_t column = int64_t(blockIdx.x) * kWarp + threadIdx.x % kWarp;
  const float sum = sum_of_parts(sums, p.parts_BC, 0, p.parts, p.columns, column);
  if (threadIdx.x < kWarp && column < p.columns) store(global<float>(p.sums_C), column, sum);
}

inline void add_up(const ColumnSums& p, void* stream) {
  const int threads = kWarp * kSumGroups;
  TC_LAUNCH(add_parts, ceil_div(p.columns, kWarp), threads, threads * sizeof(float), stream, p);
}

}  // namespace
}  // namespace tunecore::cuda
