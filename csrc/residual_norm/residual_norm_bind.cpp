// The Python face of the residual_norm kernels.
#include "../common/capsule.h"
#include "residual_norm_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

struct Dropout {
  uint32_t drop_below;
  uint64_t key;
  uint32_t site;
};

// Checks that other tensors have the type and shape of z.
struct Like {
  const TensorView& z_TE;

  void* rows(const py::object& x, const char* name) const {
    return view_of(x, name).dtype({z_TE.dtype()}).shape({z_TE.size(0), z_TE.size(1)}).contiguous().raw();
  }
  void* optional_rows(const py::object& x, const char* name) const { return x.is_none() ? nullptr : rows(x, name); }
  void* optional_row(const py::object& x, const char* name) const {
    if (x.is_none()) return nullptr;
    return view_of(x, name).dtype({z_TE.dtype()}).shape({z_TE.size(1)}).contiguous().raw();
  }
};

TensorView rows_of(const py::object& z) {
  return view_of(z, "z").dtype({DType::f32, DType::bf16}).dims(2).contiguous();
}

ResidualNormType type_of(const TensorView& z) {
  return z.dtype() == DType::f32 ? ResidualNormType::f32 : ResidualNormType::bf16;
}

ResidualNormParams params_of(const TensorView& z_TE, const py::object& input_bias, const py::object& weight,
                             const py::object& stats, bool centred, const Dropout& dropout) {
  require(dropout.drop_below < 65536,
          "argument 'drop_below': wanted less than 65536, got " + std::to_string(dropout.drop_below));
  require(!dropout.drop_below || z_TE.size(1) % 8 == 0,
          "argument 'z': dropout wants rows of a multiple of 8, got " + z_TE.describe());
  const Like like{z_TE};
  ResidualNormParams p{};
  p.z_TE = z_TE.raw();
  p.input_bias_E = like.optional_row(input_bias, "input_bias");
  p.weight_E = view_of(weight, "weight").dtype({z_TE.dtype()}).shape({z_TE.size(1)}).contiguous().raw();
  p.stats_T2 = view_of(stats, "stats").dtype({DType::f32}).shape({z_TE.size(0), 2}).contiguous().data<float>();
  p.width = z_TE.size(1);
  p.centred = centred;
  p.rng_key = dropout.key;
  p.site = dropout.site;
  p.drop_below = dropout.drop_below;
  return p;
}

void forward(const py::object& x, const py::object& residual, const py::object& input_bias, const py::object& z,
             const py::object& weight, const py::object& bias, const py::object& y, const py::object& stats, float eps,
             bool centred, uint32_t drop_below, uint64_t key, uint32_t site, int threads) {
  const TensorView z_TE = rows_of(z);
  ResidualNormParams p = params_of(z_TE, input_bias, weight, stats, centred, {drop_below, key, site});
  const Like like{z_TE};
  p.plain = x.is_none();
  p.x_TE = like.optional_rows(x, "x");
  p.residual_TE = like.optional_rows(residual, "residual");
  p.bias_E = like.optional_row(bias, "bias");
  p.y_TE = like.rows(y, "y");
  p.eps = eps;
  const py::gil_scoped_release released;
  residual_norm_forward_cpu(p, type_of(z_TE), z_TE.size(0), threads);
}

void backward(const py::object& dy, const py::object& z, const py::object& input_bias, const py::object& weight,
              const py::object& stats, const py::object& dz, const py::object& dx, const py::object& sums, bool centred,
              uint32_t drop_below, uint64_t key, uint32_t site, int threads) {
  const TensorView z_TE = rows_of(z);
  ResidualNormParams p = params_of(z_TE, input_bias, weight, stats, centred, {drop_below, key, site});
  const Like like{z_TE};
  p.dy_TE = like.rows(dy, "dy");
  p.dz_TE = like.rows(dz, "dz");
  p.dx_TE = like.optional_rows(dx, "dx");
  float* const out = view_of(sums, "sums")
                         .dtype({DType::f32})
                         .shape({kResidualNormSums, z_TE.size(1)})
                         .contiguous()
                         .data<float>();
  const py::gil_scoped_release released;
  residual_norm_backward_cpu(p, type_of(z_TE), z_TE.size(0), out, threads);
}

}  // namespace

void def_residual_norm(py::module_& m) {
  m.def("residual_norm_forward", &forward, py::arg("x"), py::arg("residual"), py::arg("input_bias"), py::arg("z"),
        py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("stats"), py::arg("eps"), py::arg("centred"),
        py::arg("drop_below"), py::arg("key"), py::arg("site"), py::arg("threads"),
        "z [T, E] = residual + dropout(x + input_bias), or as it is where x is None; y = norm(z) * weight + bias; "
        "stats [T, 2] = mean and 1 / deviation.");
  m.def("residual_norm_backward", &backward, py::arg("dy"), py::arg("z"), py::arg("input_bias"), py::arg("weight"),
        py::arg("stats"), py::arg("dz"), py::arg("dx"), py::arg("sums"), py::arg("centred"), py::arg("drop_below"),
        py::arg("key"), py::arg("site"), py::arg("threads"),
        "dz, dx (or None where it is dz) and the sums over rows [3, E] for weight, bias and input_bias.");
}

}  // namespace tunecore
