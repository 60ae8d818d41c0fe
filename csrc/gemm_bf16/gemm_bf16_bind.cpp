// The Python face of the bf16 product.
#include "../common/capsule.h"
#include "gemm_bf16_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

void gemm_bf16(const py::object& a, const py::object& b, const py::object& c, const py::object& bias, bool add,
               int threads) {
  const GemmBf16Kernels* const kernels = gemm_bf16_kernels();
  require(kernels != nullptr, "gemm_bf16: this processor, or the variant in use, has no products of bf16");
  const TensorView a_MK = view_of(a, "a").dtype({DType::bf16}).dims(2).rows_or_columns_in_one_piece();
  const TensorView b_KN = view_of(b, "b").dtype({DType::bf16}).dims(2).rows_or_columns_in_one_piece();
  const int64_t rows = a_MK.size(0), columns = b_KN.size(1), depth = a_MK.size(1);
  require(b_KN.size(0) == depth, "argument 'b': wanted " + std::to_string(depth) + " rows, got " + b_KN.describe());
  const TensorView c_MN = view_of(c, "c").dtype({DType::f32, DType::bf16}).shape({rows, columns}).last_stride_one();
  const auto bias_N = optional_view_of(bias, "bias");
  if (bias_N) bias_N->dtype({DType::bf16}).shape({columns}).contiguous();
  const bool is_float = c_MN.dtype() == DType::f32;
  require(!add || is_float, "argument 'add': only a float32 'c' is added to");
  const GemmBf16Params params{{a_MK.data<uint16_t>(), a_MK.stride(0), a_MK.stride(1)},
                              {b_KN.data<uint16_t>(), b_KN.stride(0), b_KN.stride(1)},
                              rows, columns, depth, c_MN.raw(), c_MN.stride(0), is_float,
                              bias_N ? bias_N->data<uint16_t>() : nullptr, add};
  const py::gil_scoped_release released;
  gemm_bf16_cpu(params, threads, *kernels);
}

}  // namespace

void def_gemm_bf16(py::module_& m) {
  m.def("gemm_bf16", &gemm_bf16, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("bias"), py::arg("add"),
        py::arg("threads"),
        "c [M, N] = a [M, K] b [K, N] + bias [N] (None: none), or added to c; a, b, bias bfloat16, c bfloat16 or float32, "
        "summed in float32. Rows or columns of a and of b lie in one piece.");
}

}  // namespace tunecore
