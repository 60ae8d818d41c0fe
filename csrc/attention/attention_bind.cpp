// The Python face of the attention kernels.
#include <pybind11/pybind11.h>

namespace tunecore {

void def_attention(pybind11::module_&) {}

}  // namespace tunecore
