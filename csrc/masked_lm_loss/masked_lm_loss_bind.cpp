// The Python face of the masked_lm_loss kernels.
#include "../common/capsule.h"
#include "masked_lm_loss_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

LogitType logit_type(const TensorView& x) { return x.dtype() == DType::f32 ? LogitType::f32 : LogitType::bf16; }

py::tuple masked_lm_loss(const py::object& logits, const py::object& bias, const py::object& targets,
                         float label_smoothing, float z_loss, bool gradient, int threads) {
  const TensorView x_NV = view_of(logits, "logits").dtype({DType::f32, DType::bf16}).dims(2).last_stride_one();
  const int64_t rows = x_NV.size(0), vocab = x_NV.size(1);
  const TensorView t_N = view_of(targets, "targets").dtype({DType::i64}).shape({rows}).contiguous();
  MaskedLmLossParams params{};
  params.logits_NV = x_NV.raw();
  params.row_stride = x_NV.stride(0);
  params.vocab = vocab;
  if (const auto b_V = optional_view_of(bias, "bias"))
    params.bias_V = b_V->dtype({DType::f32}).shape({vocab}).contiguous().data<float>();
  params.targets_N = t_N.data<int64_t>();
  params.label_smoothing = label_smoothing;
  params.z_loss = z_loss;
  params.gradient = gradient;
  MaskedLmLossSums sums{};
  {
    const py::gil_scoped_release released;
    for (int64_t n = 0; n < rows; ++n)
      require(params.targets_N[n] >= 0 && params.targets_N[n] < vocab,
              "argument 'targets': " + std::to_string(params.targets_N[n]) + " at row " + std::to_string(n) +
                  " is not a class of a vocabulary of " + std::to_string(vocab));
    sums = masked_lm_loss_cpu(params, logit_type(x_NV), rows, threads);
  }
  return py::make_tuple(sums.loss, sums.correct);
}

void column_sum(const py::object& x, const py::object& sum, int threads) {
  const TensorView x_NV = view_of(x, "x").dtype({DType::f32, DType::bf16}).dims(2).last_stride_one();
  const TensorView sum_V = view_of(sum, "sum").dtype({DType::f32}).shape({x_NV.size(1)}).contiguous();
  const py::gil_scoped_release released;
  column_sum_cpu(x_NV.raw(), logit_type(x_NV), x_NV.size(0), x_NV.stride(0), x_NV.size(1), sum_V.data<float>(),
                 threads);
}

}  // namespace

void def_masked_lm_loss(py::module_& m) {
  m.def("masked_lm_loss", &masked_lm_loss, py::arg("logits"), py::arg("bias"), py::arg("targets"),
        py::arg("label_smoothing"), py::arg("z_loss"), py::arg("gradient"), py::arg("threads"),
        "Sum of the losses and count of right argmaxes of logits [N, V] (+ bias [V]) against targets [N]. The logits "
        "are consumed: overwritten by the gradient of the sum where `gradient`.");
  m.def("column_sum", &column_sum, py::arg("x"), py::arg("sum"), py::arg("threads"),
        "sum [V] += column sums of x [N, V], in float32, rows in order.");
}

}  // namespace tunecore
