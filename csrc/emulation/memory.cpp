// The registered regions, and the check of one access.
#include "memory.h"

#include <string.h>

#include <map>
#include <memory>

#include "emulation.h"
#include "state.h"

namespace tunecore::emulation {

Current current;

namespace {

constexpr size_t kGuardBytes = 64;

std::map<const char*, Region*>& regions() {  // by the address behind their last byte
  static std::map<const char*, Region*> all;
  return all;
}

std::vector<char> shared_storage;
std::unique_ptr<Region> shared;

std::string index_of(const Region& region, const void* at) {
  const int64_t bytes = static_cast<const char*>(at) - region.begin, element = int64_t(region.element);
  return region.name + "[" + std::to_string((bytes - (bytes < 0 ? element - 1 : 0)) / element) + "] of " +
         std::to_string(region.bytes / region.element);
}

// Whether `earlier` surely happened before what the running thread does now.
bool ordered(const Access& earlier, const Access& now) {
  if (earlier.launch != now.launch) return true;
  if (earlier.atomic && now.atomic) return true;
  if (earlier.block != now.block) return false;
  if (earlier.barrier != now.barrier || earlier.thread == now.thread) return true;
  return earlier.warp == now.warp && earlier.warp_barrier != now.warp_barrier;
}

void note_read(Access& read, const Access& now) {
  const bool same_time = read.launch == now.launch && read.block == now.block && read.barrier == now.barrier;
  if (read.launch == now.launch && read.block != now.block) {
    read = now, read.warp = read.thread = Access::kSeveral;  // any block that writes races with one of them
    read.block = uint32_t(-1);
  } else if (same_time && read.warp != now.warp) {
    read = now, read.warp = read.thread = Access::kSeveral;
  } else if (same_time && read.warp_barrier == now.warp_barrier && read.thread != now.thread) {
    read.thread = Access::kSeveral;
  } else {
    read = now;
  }
}

void check_range(const Region& region, const void* at, size_t bytes, const char* what, bool write) {
  const char* const p = static_cast<const char*>(at);
  if (p < region.begin || p + bytes > region.begin + region.bytes)
    fail(std::string(what) + " outside " + index_of(region, at));
  if (uintptr_t(p) % (bytes < 16 ? bytes : 16))
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, misaligned, at " + index_of(region, at));
  if (write && !region.writable) fail(std::string(what) + " to the input " + index_of(region, at));
}

void check_guard(const Region& region, const char* guard) {
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (static_cast<unsigned char>(guard[i]) != kPoison) fail("the guard zone was written: " + index_of(region, guard + i));
}

}  // namespace

Region::Region(std::string region_name, void* at, size_t size, size_t element_size, bool can_write, bool initialised)
    : name(std::move(region_name)), begin(static_cast<char*>(at)), bytes(size), element(element_size),
      granule(element_size < 2 ? 1 : 2), writable(can_write), granules(size / granule) {
  for (Granule& g : granules) g.initialised = initialised;
}

void add_region(Region* region) { regions()[region->begin + region->bytes] = region; }

void remove_region(Region* region) { regions().erase(region->begin + region->bytes); }

Region* region_of(const void* at) {
  if (!at) return nullptr;
  const auto found = regions().upper_bound(static_cast<const char*>(at));
  if (found != regions().end() && found->second->begin <= at) return found->second;
  // A region of no elements holds nothing, and a pointer to its end is a pointer to it.
  const auto ends = regions().find(static_cast<const char*>(at));
  if (ends != regions().end()) return ends->second;
  if (settings().strict) fail("a global pointer that no registered buffer holds");
  return nullptr;
}

Region* shared_region() { return shared.get(); }

void begin_block(uint32_t block, size_t shared_bytes, size_t threads) {
  current.block = block, current.barrier = 0, current.thread = 0;
  current.warp_barrier.assign((threads + 31) / 32, 0);
  shared_storage.assign(shared_bytes + 3 * kGuardBytes, char(kPoison));
  char* const storage = shared_storage.data();
  char* const begin = storage + 2 * kGuardBytes - uintptr_t(storage) % kGuardBytes;
  shared.reset(new Region("shared", begin, shared_bytes, 1, true, false));
}

void end_block() {
  check_guard(*shared, shared->begin - kGuardBytes);
  check_guard(*shared, shared->begin + shared->bytes);
  for (const auto& [end, region] : regions()) {
    check_guard(*region, region->begin - kGuardBytes);
    check_guard(*region, end);
  }
}

void touch(Region* region, const void* at, size_t bytes, Touch kind) {
  if (!region) return;
  const bool write = kind != Touch::read;
  check_range(*region, at, bytes, kind == Touch::read ? "read" : kind == Touch::atomic ? "atomic" : "write", write);
  const int32_t warp = current.thread / 32;
  const Access now{current.launch, current.block, current.barrier, current.warp_barrier[size_t(warp)],
                   warp, current.thread, kind == Touch::atomic};
  const size_t first = size_t(static_cast<const char*>(at) - region->begin) / region->granule;
  for (size_t g = first; g < first + bytes / region->granule; ++g) {
    Granule& granule = region->granules[g];
    if (granule.in_flight && kind != Touch::async_end)
      fail("the target of a cp.async is used before a wait: " + index_of(*region, at));
    if (!granule.initialised && (kind == Touch::read || kind == Touch::atomic))
      fail("read of what nobody wrote: " + index_of(*region, at));
    if (granule.written.launch && !ordered(granule.written, now))
      fail("race: no barrier since thread " + std::to_string(granule.written.thread) + " of block " +
           std::to_string(granule.written.block) + " wrote " + index_of(*region, at));
    if (!write) {
      note_read(granule.read, now);
      continue;
    }
    if (granule.read.launch && !ordered(granule.read, now))
      fail("race: no barrier since another thread read " + index_of(*region, at));
    granule.written = now;
    granule.initialised = true;
    granule.in_flight = kind == Touch::async_begin;
  }
}

}  // namespace tunecore::emulation
