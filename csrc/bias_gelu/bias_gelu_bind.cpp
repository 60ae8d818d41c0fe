// The Python face of the bias_gelu kernels.
#include "../common/capsule.h"
#include "bias_gelu_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

// Views of x [T, F], bias [F] and out [T, F], checked.
BiasGeluParams params_of(const TensorView& x_TF, const py::object& bias, const py::object& out, bool tanh) {
  BiasGeluParams params{};
  params.x_TF = x_TF.raw();
  params.width = x_TF.size(1);
  params.tanh = tanh;
  if (const auto bias_F = optional_view_of(bias, "bias"))
    params.bias_F = bias_F->dtype({x_TF.dtype()}).shape({params.width}).contiguous().raw();
  params.out_TF = view_of(out, "out").dtype({x_TF.dtype()}).shape({x_TF.size(0), params.width}).contiguous().raw();
  return params;
}

TensorView rows_of(const py::object& x) {
  return view_of(x, "x").dtype({DType::f32, DType::bf16}).dims(2).contiguous();
}

BiasGeluType type_of(const TensorView& x) { return x.dtype() == DType::f32 ? BiasGeluType::f32 : BiasGeluType::bf16; }

void forward(const py::object& x, const py::object& bias, const py::object& out, bool tanh, int threads) {
  const TensorView x_TF = rows_of(x);
  const BiasGeluParams params = params_of(x_TF, bias, out, tanh);
  const py::gil_scoped_release released;
  bias_gelu_forward_cpu(params, type_of(x_TF), x_TF.size(0), threads);
}

void backward(const py::object& dout, const py::object& x, const py::object& bias, const py::object& dx,
              const py::object& dbias, bool tanh, int threads) {
  const TensorView x_TF = rows_of(x);
  BiasGeluParams params = params_of(x_TF, bias, dx, tanh);
  params.dout_TF =
      view_of(dout, "dout").dtype({x_TF.dtype()}).shape({x_TF.size(0), params.width}).contiguous().raw();
  float* dbias_F = nullptr;
  if (const auto sums = optional_view_of(dbias, "dbias"))
    dbias_F = sums->dtype({DType::f32}).shape({params.width}).contiguous().data<float>();
  const py::gil_scoped_release released;
  bias_gelu_backward_cpu(params, type_of(x_TF), x_TF.size(0), dbias_F, threads);
}

}  // namespace

void def_bias_gelu(py::module_& m) {
  m.def("bias_gelu_forward", &forward, py::arg("x"), py::arg("bias"), py::arg("out"), py::arg("tanh"),
        py::arg("threads"), "out [T, F] = gelu(x [T, F] + bias [F] or None).");
  m.def("bias_gelu_backward", &backward, py::arg("dout"), py::arg("x"), py::arg("bias"), py::arg("dx"),
        py::arg("dbias"), py::arg("tanh"), py::arg("threads"),
        "dx [T, F] of bias_gelu_forward, and dbias [F] or None, float32.");
}

}  // namespace tunecore
