// The Python face of the embedding kernel.
#include "../common/capsule.h"
#include "embedding_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

void embedding_backward(const py::object& dout, const py::object& ids, const py::object& dtable, int64_t padding,
                        int threads) {
  const TensorView dout_TE = view_of(dout, "dout").dtype({DType::f32, DType::bf16}).dims(2).contiguous();
  const TensorView ids_T = view_of(ids, "ids").dtype({DType::i64}).shape({dout_TE.size(0)}).contiguous();
  const TensorView dtable_VE =
      view_of(dtable, "dtable").dtype({DType::f32}).shape({TensorView::kAny, dout_TE.size(1)}).contiguous();
  const EmbeddingParams params{dout_TE.raw(),   ids_T.data<int64_t>(), dtable_VE.data<float>(),
                               dout_TE.size(0), dout_TE.size(1),       padding};
  const py::gil_scoped_release released;
  for (int64_t t = 0; t < params.tokens; ++t)
    require(params.ids_T[t] >= 0 && params.ids_T[t] < dtable_VE.size(0),
            "argument 'ids': " + std::to_string(params.ids_T[t]) + " at token " + std::to_string(t) +
                " is not a row of a table of " + std::to_string(dtable_VE.size(0)));
  embedding_backward_cpu(params, dout_TE.dtype() == DType::f32 ? EmbeddingType::f32 : EmbeddingType::bf16, threads);
}

}  // namespace

void def_embedding(py::module_& m) {
  m.def("embedding_backward", &embedding_backward, py::arg("dout"), py::arg("ids"), py::arg("dtable"),
        py::arg("padding"), py::arg("threads"),
        "dtable [V, E] += dout [T, E] at the rows ids [T], but for the id `padding` (-1: none); float32, in the order "
        "of the tokens.");
}

}  // namespace tunecore
