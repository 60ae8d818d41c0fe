// Device memory as the emulation sees it: every access of a kernel goes through a checked pointer to a registered
// region, so that one outside it, of the wrong alignment, of bytes nobody wrote, or in a race is caught where it happens.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace tunecore::emulation {

// When and by whom a granule was last touched. A barrier, or a __syncwarp within a warp, orders accesses.
struct Access {
  static constexpr int32_t kSeveral = -1;
  uint32_t launch = 0, block = 0, barrier = 0, warp_barrier = 0;
  int32_t warp = 0, thread = 0;
  bool atomic = false;
};

// What is known of a piece of memory that is read and written as a whole.
struct Granule {
  Access written, read;
  bool initialised = false;
  bool in_flight = false;  // the target of a cp.async that nobody waited for
};

struct Region {
  std::string name;
  char* begin;
  size_t bytes;
  size_t element;  // bytes, for messages
  size_t granule;  // bytes: those of the smallest element, at most two
  bool writable;
  std::vector<Granule> granules;

  Region(std::string region_name, void* at, size_t size, size_t element_size, bool can_write, bool initialised);
};

enum class Touch { read, write, atomic, async_begin, async_end };

// Check one access of the running thread and note it; throws Failure. A null region is memory nobody registered.
void touch(Region* region, const void* at, size_t bytes, Touch kind);

// The region that holds `at`; null for null, and where settings().strict is off and none does; else throws Failure.
Region* region_of(const void* at);

void add_region(Region* region);
void remove_region(Region* region);

// A pointer that knows its region. Kernels use load, store and their kin on it (common/cuda/memory.h).
template <class T>
struct Pointer {
  T* at = nullptr;
  Region* region = nullptr;

  Pointer operator+(int64_t n) const { return {at + n, region}; }
  explicit operator bool() const { return at != nullptr; }
  operator Pointer<const T>() const { return {at, region}; }
};

template <class T>
struct Pointer<const T> {
  const T* at = nullptr;
  Region* region = nullptr;

  Pointer operator+(int64_t n) const { return {at + n, region}; }
  explicit operator bool() const { return at != nullptr; }
};

// Elements registered as device memory for as long as they live, with guard zones around. Outputs begin as NaN and
// count as unwritten; inputs are read-only.
template <class T>
class Buffer {
 public:
  static Buffer input(const std::string& name, const std::vector<T>& values) { return {name, values, false, true}; }
  static Buffer in_place(const std::string& name, const std::vector<T>& values) { return {name, values, true, true}; }
  // The kernel is to write all but the first `before` elements.
  static Buffer output(const std::string& name, size_t count, size_t before = 0) {
    Buffer made(name, std::vector<T>(count), true, false);
    for (size_t g = 0; g < before * sizeof(T) / made.region_->granule; ++g) made.region_->granules[g].initialised = true;
    return made;
  }
  ~Buffer() {
    if (region_) remove_region(region_.get());
  }
  Buffer(Buffer&&) = default;

  T* data() const { return reinterpret_cast<T*>(region_->begin); }
  const T& operator[](size_t i) const { return data()[i]; }
  size_t size() const { return region_->bytes / sizeof(T); }
  std::vector<T> values() const { return {data(), data() + size()}; }
  void set(size_t i, T value) { data()[i] = value; }
  // Index of the first element that no kernel wrote, or -1.
  int64_t unwritten() const {
    for (size_t g = 0; g < region_->granules.size(); ++g)
      if (!region_->granules[g].initialised) return int64_t(g * region_->granule / sizeof(T));
    return -1;
  }

 private:
  static constexpr size_t kGuard = 64;
  Buffer(const std::string& name, const std::vector<T>& values, bool writable, bool initialised);

  std::unique_ptr<char[]> storage_;
  std::unique_ptr<Region> region_;
};

// Bytes of a guard zone, and of memory that was not written; as floats of any width it is NaN.
constexpr unsigned char kPoison = 0xFF;

template <class T>
Buffer<T>::Buffer(const std::string& name, const std::vector<T>& values, bool writable, bool initialised) {
  const size_t bytes = values.size() * sizeof(T);
  storage_.reset(new char[bytes + 3 * kGuard]);
  char* const begin = storage_.get() + 2 * kGuard - uintptr_t(storage_.get()) % kGuard;
  for (char* p = storage_.get(); p < storage_.get() + bytes + 3 * kGuard; ++p) *p = char(kPoison);
  if (initialised)
    for (size_t i = 0; i < values.size(); ++i) reinterpret_cast<T*>(begin)[i] = values[i];
  region_.reset(new Region(name, begin, bytes, sizeof(T), writable, initialised));
  add_region(region_.get());
}

}  // namespace tunecore::emulation
