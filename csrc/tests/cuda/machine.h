// Where the tests of kernels run: over the emulation, or with TUNECORE_TESTS_ON_DEVICE on a GPU. A test is written once,
// on a Buffer, in_every_order and ran, and holds on both.
#pragma once
#include <string>

#ifdef TUNECORE_TESTS_ON_DEVICE
#include "on_device.h"
#else
#include "emulated.h"
#endif

namespace tunecore::tests {

inline bool has(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::printf("'%s' is not in '%s'\n", part.c_str(), text.c_str());
  return found;
}

// What is wrong with a call of an entry of the library: its own words, or what became of its kernels; "" where nothing is.
template <class Params>
std::string failure_of(const char* (*entry)(const Params*, void*), const Params& p) {
  const char* const refused = entry(&p, nullptr);
  return refused ? refused : after_kernels();
}

template <class Params>
bool ran(const char* (*entry)(const Params*, void*), const Params& p) {
  const std::string failure = failure_of(entry, p);
  if (!failure.empty()) std::printf("%s\n", failure.c_str());
  return failure.empty();
}

}  // namespace tunecore::tests
