// The Python face of the AdamW kernels.
#include "../common/capsule.h"
#include "adamw_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

// (weight, gradient, mean, square, rounded or None, keep, step_size, root)
AdamWTensor tensor_of(const py::tuple& entry) {
  require(entry.size() == 8, "argument 'tensors': wanted tuples of 8, got one of " + std::to_string(entry.size()));
  const TensorView weight = view_of(entry[0], "weight").dtype({DType::f32}).contiguous();
  const int64_t count = weight.numel();
  const auto same = [&](int i, const char* name) {
    const TensorView x = view_of(entry[size_t(i)], name).dtype({DType::f32}).contiguous();
    require(x.numel() == count, std::string("argument '") + name + "': wanted the " + std::to_string(count) +
                                    " elements of 'weight', got " + x.describe());
    return x.data<float>();
  };
  AdamWTensor out{};
  out.weight = weight.data<float>();
  out.gradient = same(1, "gradient");
  out.mean = same(2, "mean");
  out.square = same(3, "square");
  if (const auto rounded = optional_view_of(entry[4], "rounded")) {
    require(rounded->dtype({DType::bf16}).contiguous().numel() == count,
            "argument 'rounded': wanted the elements of 'weight', got " + rounded->describe());
    out.rounded = rounded->data<uint16_t>();
  }
  out.count = count;
  out.keep = entry[5].cast<float>();
  out.step_size = entry[6].cast<float>();
  out.root = entry[7].cast<float>();
  return out;
}

void adamw(const py::list& tensors, double beta1, double beta2, float eps, float scale, int threads) {
  std::vector<AdamWTensor> all;
  for (const py::handle entry : tensors) all.push_back(tensor_of(entry.cast<py::tuple>()));
  const py::gil_scoped_release released;
  adamw_cpu(all, {float(beta2), float(1 - beta1), float(1 - beta2), eps, scale}, threads);
}

}  // namespace

void def_adamw(py::module_& m) {
  m.def("adamw", &adamw, py::arg("tensors"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("scale"),
        py::arg("threads"),
        "One step over a list of (weight, gradient, mean, square, rounded or None, keep, step_size, root), in place.");
}

}  // namespace tunecore
