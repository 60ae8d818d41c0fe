// Memory of one thread that stays alive between calls: a fresh megabyte a call is page faults. For baseline files only.
#pragma once
#include <cstddef>
#include <new>

namespace tunecore {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

  // At least `bytes`, on a cache line; what it held is lost.
  char* of(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
      size_ = bytes;
    }
    return data_;
  }

 private:
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tunecore
