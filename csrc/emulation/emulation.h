// CUDA on a host without one: the blocks of a launch run one after the other, the threads of a block as fibers that
// take turns at barriers and warp collectives. csrc/README.md says what is checked and what is not.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

typedef void* cudaStream_t;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the running thread.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tunecore::emulation {

// A fault of a kernel; the message names kernel, block and thread.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { forward, reverse, random };
enum class AsyncCopy { at_issue, at_wait };

struct Settings {
  Order order = Order::forward;  // of threads between barriers, and of blocks
  unsigned seed = 1;             // of the random order
  AsyncCopy async_copy = AsyncCopy::at_wait;
#ifdef TUNECORE_EMULATION_LOOSE
  bool strict = false;
#else
  bool strict = true;  // a global pointer outside every registered region is a fault
#endif
};
Settings& settings();

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// The dynamic shared memory of the running block.
Region* shared_region();

// Throws Failure with kernel, block and thread before the message.
[[noreturn]] void fail(const std::string& message);

// Where in a kernel a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator==(const Site& other) const { return file == other.file && line == other.line && what == other.what; }
};

void barrier(const Site& site);

// One lane's part in an operation of the lanes of `mask`: waits until all of them are at this site, then the last to
// come runs `complete`, which sees every lane's `slot` (null outside the mask).
using Complete = void (*)(void* const* slots);
void collective(const Site& site, uint32_t mask, void* slot, Complete complete);

// cp.async: bytes = 16; without `valid` the target is set to zero and the source is not read.
void async_copy(Region* to_region, void* to, Region* from_region, const void* from, bool valid);
void async_commit();
void async_wait(int groups_left);

struct Shuffle {
  uint64_t bits;
  int source;
  uint64_t result;
};
void complete_shuffle(void* const* slots);
void complete_nothing(void* const* slots);

template <class T>
T shuffle(const Site& site, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a register or two");
  Shuffle slot{0, source, 0};
  memcpy(&slot.bits, &value, sizeof(T));
  collective(site, mask, &slot, complete_shuffle);
  memcpy(&value, &slot.result, sizeof(T));
  return value;
}

inline int lane() {
  return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

}  // namespace tunecore::emulation

// Default arguments stand for the caller's file and line.
#define TC_EMULATION_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(TC_EMULATION_SITE) { tunecore::emulation::barrier({"__syncthreads", file, line}); }

inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, TC_EMULATION_SITE) {
  tunecore::emulation::collective({"__syncwarp", file, line}, mask, &mask, tunecore::emulation::complete_nothing);
}

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, TC_EMULATION_SITE) {
  return tunecore::emulation::shuffle({"__shfl_sync", file, line}, mask, value, source & 31);
}

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int other, TC_EMULATION_SITE) {
  const int source = tunecore::emulation::lane() ^ other;
  return tunecore::emulation::shuffle({"__shfl_xor_sync", file, line}, mask, value, source);
}

template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int by, TC_EMULATION_SITE) {
  const int source = tunecore::emulation::lane() + by;
  return tunecore::emulation::shuffle({"__shfl_down_sync", file, line}, mask, value,
                                      source < 32 ? source : tunecore::emulation::lane());
}
