// The Python face of the AdamW kernels.
#include "../common/capsule.h"
#include "adamw_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

AdamWRows rows_of(const py::handle& entry, const TensorView& weight) {
  const auto rows = optional_view_of(entry, "rows");
  if (!rows || weight.numel() == 0) return {};
  const TensorView rows_U = TensorView(*rows).dtype({DType::i64}).dims(1).contiguous();
  const TensorView weight_VE = TensorView(weight).dims(2);
  const AdamWRows out{rows_U.data<int64_t>(), rows_U.size(0), weight_VE.size(1)};
  for (int64_t u = 0; u < out.row_count; ++u)
    require(out.rows[u] > (u ? out.rows[u - 1] : -1) && out.rows[u] < weight_VE.size(0),
            "argument 'rows': " + std::to_string(out.rows[u]) + " at " + std::to_string(u) +
                "; wanted ascending rows of a weight of " + std::to_string(weight_VE.size(0)));
  return out;
}

// (weight, gradient, mean, square, rounded or None, keep, step_size, root, rows or None)
AdamWItem item_of(const py::tuple& entry) {
  require(entry.size() == 9, "argument 'tensors': wanted tuples of 9, got one of " + std::to_string(entry.size()));
  const TensorView weight = view_of(entry[0], "weight").dtype({DType::f32}).contiguous();
  const int64_t count = weight.numel();
  const auto floats = [&](int i, const char* name, int64_t wanted, const char* of) {
    const TensorView x = view_of(entry[size_t(i)], name).dtype({DType::f32}).contiguous();
    require(x.numel() == wanted, std::string("argument '") + name + "': wanted the " + std::to_string(wanted) +
                                     " elements of " + of + ", got " + x.describe());
    return x.data<float>();
  };
  AdamWTensor out{};
  const AdamWRows some = rows_of(entry[8], weight);
  out.weight = weight.data<float>();
  out.gradient = some.width ? floats(1, "gradient", some.row_count * some.width, "'rows' of 'weight'")
                            : floats(1, "gradient", count, "'weight'");
  out.mean = floats(2, "mean", count, "'weight'");
  out.square = floats(3, "square", count, "'weight'");
  if (const auto rounded = optional_view_of(entry[4], "rounded")) {
    require(rounded->dtype({DType::bf16}).contiguous().numel() == count,
            "argument 'rounded': wanted the elements of 'weight', got " + rounded->describe());
    out.rounded = rounded->data<uint16_t>();
  }
  out.count = count;
  out.keep = entry[5].cast<float>();
  out.step_size = entry[6].cast<float>();
  out.root = entry[7].cast<float>();
  return {out, some};
}

void adamw(const py::list& tensors, double beta1, double beta2, float eps, float scale, int threads) {
  std::vector<AdamWItem> all;
  for (const py::handle entry : tensors) all.push_back(item_of(entry.cast<py::tuple>()));
  const py::gil_scoped_release released;
  adamw_cpu(all, {float(beta2), float(1 - beta1), float(1 - beta2), eps, scale}, threads);
}

}  // namespace

void def_adamw(py::module_& m) {
  m.def("adamw", &adamw, py::arg("tensors"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("scale"),
        py::arg("threads"),
        "One step over a list of (weight, gradient, mean, square, rounded or None, keep, step_size, root, rows or None), "
        "in place.");
}

}  // namespace tunecore
