// The Python face of the dropout kernels.
#include "../common/capsule.h"
#include "dropout_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

void dropout(const py::object& x, const py::object& out, uint32_t drop_below, uint64_t rng_key, uint32_t site,
             int threads) {
  const TensorView in = view_of(x, "x").dtype({DType::f32, DType::bf16}).dims(1).contiguous();
  const TensorView to = view_of(out, "out").dtype({in.dtype()}).shape({in.size(0)}).contiguous();
  require(drop_below < 65536, "argument 'drop_below': wanted less than 65536, got " + std::to_string(drop_below));
  const DropoutParams params{in.raw(), to.raw(), in.size(0), rng_key, site, drop_below};
  const py::gil_scoped_release released;
  dropout_cpu(params, in.dtype() == DType::f32 ? DropoutType::f32 : DropoutType::bf16, threads);
}

}  // namespace

void def_dropout(py::module_& m) {
  m.def("dropout", &dropout, py::arg("x"), py::arg("out"), py::arg("drop_below"), py::arg("rng_key"), py::arg("site"),
        py::arg("threads"), "Dropout of flat x into out by counter; out may be x.");
}

}  // namespace tunecore
