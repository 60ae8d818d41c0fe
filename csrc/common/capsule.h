// From a Python DLPack capsule to a TensorView. The capsule stays the owner (its own destructor frees it), so it is
// never consumed and a bound function borrows it for the length of the call.
#pragma once
#include <pybind11/pybind11.h>

#include <optional>

#include "tensor.h"

namespace tunecore {

inline TensorView view_of(const pybind11::handle& capsule, const char* name) {
  auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) {
    PyErr_Clear();
    throw Error(std::string("argument '") + name + "': wanted an unused DLPack capsule named 'dltensor', got " +
                std::string(pybind11::str(pybind11::type::handle_of(capsule))));
  }
  return TensorView::from_dlpack(managed->tensor, name).on_cpu();
}

inline std::optional<TensorView> optional_view_of(const pybind11::handle& capsule, const char* name) {
  if (capsule.is_none()) return std::nullopt;
  return view_of(capsule, name);
}

}  // namespace tunecore
