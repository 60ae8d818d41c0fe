// What module.cpp needs of the common layer.
#pragma once
#include <pybind11/pybind11.h>

namespace tunecore {

void def_common(pybind11::module_& m);

}  // namespace tunecore
