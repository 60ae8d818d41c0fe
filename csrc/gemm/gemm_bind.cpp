// The Python face of the float32 product.
#include "../common/capsule.h"
#include "gemm_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

void gemm(const py::object& a, const py::object& b, const py::object& c, const py::object& bias, bool add,
          int threads) {
  const TensorView a_MK = view_of(a, "a").dtype({DType::f32}).dims(2).rows_or_columns_in_one_piece();
  const TensorView b_KN =
      view_of(b, "b").dtype({DType::f32}).shape({a_MK.size(1), TensorView::kAny}).rows_or_columns_in_one_piece();
  const TensorView c_MN = view_of(c, "c").dtype({DType::f32}).shape({a_MK.size(0), b_KN.size(1)}).last_stride_one();
  const auto bias_N = optional_view_of(bias, "bias");
  if (bias_N) bias_N->dtype({DType::f32}).shape({b_KN.size(1)}).contiguous();
  require(!(add && bias_N), "arguments 'add' and 'bias': wanted one of them at most");
  const GemmParams params{{a_MK.data<float>(), a_MK.stride(0), a_MK.stride(1)},
                          {b_KN.data<float>(), b_KN.stride(0), b_KN.stride(1)},
                          c_MN.size(0), c_MN.size(1), a_MK.size(1), c_MN.data<float>(), c_MN.stride(0),
                          bias_N ? bias_N->data<float>() : nullptr, add};
  const py::gil_scoped_release released;
  gemm_cpu(params, threads);
}

}  // namespace

void def_gemm(py::module_& m) {
  m.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("bias"), py::arg("add"), py::arg("threads"),
        "c [M, N] = a [M, K] b [K, N] + bias [N] (None: none), or added to c; float32, a and b with rows or columns in "
        "one piece.");
}

}  // namespace tunecore
