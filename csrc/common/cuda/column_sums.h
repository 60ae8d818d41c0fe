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

// A lane a column; each warp adds every kSumGroups-th partial sum.
__global__ void __launch_bounds__(kWarp* kSumGroups) add_parts(const ColumnSums p) {
  TC_SMEM(float, sums);
  const auto parts_BC = global<const float>(p.parts_BC);
  const int lane = int(threadIdx.x) % kWarp, group = int(threadIdx.x) / kWarp;
  const int64_t column = int64_t(blockIdx.x) * kWarp + lane;
  float sum = 0.0f;
  if (column < p.columns)
    for (int64_t part = group; part < p.parts; part += kSumGroups) sum += load(parts_BC, part * p.columns + column);
  store(sums, group * kWarp + lane, sum);
  __syncthreads();
  if (group || column >= p.columns) return;
  for (int g = 1; g < kSumGroups; ++g) sum += load(sums, g * kWarp + lane);
  store(global<float>(p.sums_C), column, sum);
}

inline void add_up(const ColumnSums& p, void* stream) {
  const int threads = kWarp * kSumGroups;
  TC_LAUNCH(add_parts, ceil_div(p.columns, kWarp), threads, threads * sizeof(float), stream, p);
}

}  // namespace
}  // namespace tunecore::cuda
