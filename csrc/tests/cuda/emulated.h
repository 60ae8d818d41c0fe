// The emulation in every order of threads and mode of cp.async, and what a kernel was caught at.
#pragma once
#include <string>

#include "../../emulation/emulation.h"
#include "../check.h"

namespace tunecore::tests {

// Run body() under each setting.
template <class Body>
void in_every_order(const Body& body) {
  using emulation::AsyncCopy;
  using emulation::Order;
  const emulation::Settings before = emulation::settings();
  for (const AsyncCopy copy : {AsyncCopy::at_issue, AsyncCopy::at_wait})
    for (const auto& [order, seed] : {std::pair{Order::forward, 0u}, {Order::reverse, 0u}, {Order::random, 1u},
                                      {Order::random, 2u}}) {
      emulation::settings() = {order, seed, copy, true};
      body();
    }
  emulation::settings() = before;
}

// The message of the fault that body() is caught at, "" where none is.
template <class Body>
std::string caught(const Body& body) {
  try {
    body();
  } catch (const emulation::Failure& failure) {
    return failure.what();
  }
  return "";
}

inline bool has(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::printf("'%s' is not in '%s'\n", part.c_str(), text.c_str());
  return found;
}

}  // namespace tunecore::tests
