// What runs at this moment; shared by the scheduler and the memory of the emulation.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

namespace tunecore::emulation {

struct Current {
  std::string kernel;
  uint32_t launch = 0, block = 0;
  uint32_t barrier = 0;                // barriers that this block has passed
  std::vector<uint32_t> warp_barrier;  // __syncwarp that each warp has passed
  int32_t thread = 0;
};
extern Current current;

// Shared memory poisoned and forgotten before a block; guard zones looked at after it.
void begin_block(uint32_t block, size_t shared_bytes, size_t threads);
void end_block();

}  // namespace tunecore::emulation
