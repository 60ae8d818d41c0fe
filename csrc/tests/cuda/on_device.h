// Buffers in the memory of a GPU, with the faces of those of the emulation. Each is an allocation of its own and of exactly
// its bytes, so that compute-sanitizer sees the first byte outside; it has no guard zones, which would hide that.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "../check.h"
#include "device_memory.h"

namespace tunecore::tests {

// How often each body runs: a GPU takes its threads in an order of its own, so a race may show in one run of several.
inline int repeats() {
  const char* const given = std::getenv("TUNECORE_TEST_REPEATS");
  return given ? std::atoi(given) : 3;
}

// For compute-sanitizer's initcheck: outputs stay as allocated, and it names what was never written.
inline bool outputs_stay_raw() { return std::getenv("TUNECORE_TEST_RAW_OUTPUTS") != nullptr; }

template <class Body>
void in_every_order(const Body& body) {
  for (int n = 0; n < repeats(); ++n) body();
}

template <class Body>
void in_every_order_and_copy(const Body& body) {
  in_every_order(body);
}

// Waits for the kernels of the last call: what went wrong in them, "" where nothing did.
inline std::string after_kernels() { return device::wait(); }

template <class T>
class Buffer {
 public:
  static Buffer input(const std::string&, const std::vector<T>& values) { return Buffer(values, false); }
  static Buffer in_place(const std::string&, const std::vector<T>& values) { return Buffer(values, true); }
  // The kernel is to write all but the first `before` elements.
  static Buffer output(const std::string&, size_t count, size_t before = 0) {
    Buffer made(count);
    const bool raw = outputs_stay_raw();
    device::fill(made.data(), kPoison, (raw ? before : count) * sizeof(T));
    made.before_ = before, made.poisoned_ = !raw;
    return made;
  }

  T* data() const { return static_cast<T*>(memory_.get()); }
  size_t size() const { return host_.size(); }
  const T& operator[](size_t i) const { return values()[i]; }
  // As the last kernel left them.
  const std::vector<T>& values() const {
    if (writable_ && seen_ != device::waits()) {
      device::get(host_.data(), data(), size() * sizeof(T));
      seen_ = device::waits();
    }
    return host_;
  }
  void set(size_t i, T value) {
    host_[i] = value;
    device::put(data() + i, &value, sizeof(T));
  }
  // Index of the first element that no kernel wrote, or -1: every byte is still poison, which as a number is a NaN of
  // bits that no kernel makes.
  int64_t unwritten() const {
    const std::vector<T>& all = values();
    for (size_t i = poisoned_ ? before_ : size(); i < size(); ++i) {
      const auto* const bytes = reinterpret_cast<const unsigned char*>(&all[i]);
      size_t poison = 0;
      while (poison < sizeof(T) && bytes[poison] == kPoison) ++poison;
      if (poison == sizeof(T)) return int64_t(i);
    }
    return -1;
  }

 private:
  static constexpr unsigned char kPoison = 0xFF;
  static constexpr unsigned kNever = ~0u;

  explicit Buffer(size_t count) : host_(count), memory_(device::allocate(count * sizeof(T)), device::release) {}
  Buffer(const std::vector<T>& values, bool writable) : Buffer(values.size()) {
    host_ = values, writable_ = writable;
    device::put(data(), values.data(), values.size() * sizeof(T));
  }

  mutable std::vector<T> host_;
  std::unique_ptr<void, void (*)(void*)> memory_;
  size_t before_ = 0;
  bool writable_ = true, poisoned_ = false;
  mutable unsigned seen_ = kNever;
};

}  // namespace tunecore::tests
