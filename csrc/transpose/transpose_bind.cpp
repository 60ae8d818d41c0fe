// The Python face of the transpose kernels.
#include "../common/capsule.h"
#include "transpose_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

void transpose(const py::object& x, const py::object& out, int threads) {
  const TensorView x_RC = view_of(x, "x").dtype({DType::bf16}).dims(2).last_stride_one();
  const int64_t rows = x_RC.size(0), columns = x_RC.size(1);
  const TensorView out_CP = view_of(out, "out").dtype({DType::bf16}).dims(2).contiguous();
  require(out_CP.size(0) == columns && out_CP.size(1) >= rows,
          "argument 'out': wanted [" + std::to_string(columns) + ", at least " + std::to_string(rows) + "], got [" +
              std::to_string(out_CP.size(0)) + ", " + std::to_string(out_CP.size(1)) + "]");
  const TransposeParams params{x_RC.data<uint16_t>(), out_CP.data<uint16_t>(), rows, columns, x_RC.stride(0),
                               out_CP.size(1)};
  const py::gil_scoped_release released;
  transpose_cpu(params, threads);
}

}  // namespace

void def_transpose(py::module_& m) {
  m.def("transpose", &transpose, py::arg("x"), py::arg("out"), py::arg("threads"),
        "out [C, P] = the transpose of x [R, C], then zeros, both bf16; x must not overlap out.");
}

}  // namespace tunecore
