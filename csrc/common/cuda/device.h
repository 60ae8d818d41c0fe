// The first include of every kernel: CUDA under nvcc, its emulation (csrc/emulation) under a host compiler.
// A kernel is a template over one POD of parameters, launched by TC_LAUNCH, with one dynamic buffer of shared memory.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <stdint.h>
// Before a loop over an array of registers: all of it, or the array would lie in memory.
#define TC_UNROLL _Pragma("unroll")
// The kernel's name goes in parentheses where it holds a comma.
#define TC_LAUNCH(kernel, grid, block, shared_bytes, stream, params)                               \
  do {                                                                                             \
    if ((shared_bytes) > 48 * 1024)                                                                \
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)); \
    kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(params);        \
  } while (0)
#else
#include "../../emulation/emulation.h"
#define TC_UNROLL
#define TC_LAUNCH(kernel, grid, block, shared_bytes, stream, params)                                             \
  ((void)(stream), ::tunecore::emulation::launch(#kernel, (grid), (block), size_t(shared_bytes), [p_ = params] { \
    kernel(p_);                                                                                                  \
  }))
#endif

namespace tunecore::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

}  // namespace tunecore::cuda
