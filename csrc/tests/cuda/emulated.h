// The emulation in every order of threads and mode of cp.async, and what a kernel was caught at.
#pragma once
#include <string>

#include "../../emulation/emulation.h"
#include "../check.h"

namespace tunecore::tests {

// Run body() in several orders of threads and blocks.
template <class Body>
void in_every_order(const Body& body) {
  using emulation::Order;
  const emulation::Settings before = emulation::settings();
  for (const Order order : {Order::forward, Order::reverse, Order::random}) {
    emulation::settings().order = order;
    ++emulation::settings().seed;
    body();
  }
  emulation::settings() = before;
}

// The same with copies made at issue and at the wait: for kernels that use cp.async.
template <class Body>
void in_every_order_and_copy(const Body& body) {
  for (const auto copy : {emulation::AsyncCopy::at_issue, emulation::AsyncCopy::at_wait}) {
    emulation::settings().async_copy = copy;
    in_every_order(body);
  }
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

// Kernels have run when their entry returns, and its words are all there is to say.
inline std::string after_kernels() { return ""; }

template <class T>
using Buffer = emulation::Buffer<T>;

}  // namespace tunecore::tests
