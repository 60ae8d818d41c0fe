// The only Python module of the core: a table of contents. A new op adds one folder and two lines here.
#include "common/common.h"

namespace tunecore {

void def_adamw(pybind11::module_& m);
void def_attention(pybind11::module_& m);
void def_bias_gelu(pybind11::module_& m);
void def_dropout(pybind11::module_& m);
void def_embedding(pybind11::module_& m);
void def_gemm(pybind11::module_& m);
void def_gemm_bf16(pybind11::module_& m);
void def_masked_lm_loss(pybind11::module_& m);
void def_residual_norm(pybind11::module_& m);

}  // namespace tunecore

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of tunecore: tensors cross as DLPack capsules, no torch inside.";
  tunecore::def_common(m);
  tunecore::def_adamw(m);
  tunecore::def_attention(m);
  tunecore::def_bias_gelu(m);
  tunecore::def_dropout(m);
  tunecore::def_embedding(m);
  tunecore::def_gemm(m);
  tunecore::def_gemm_bf16(m);
  tunecore::def_masked_lm_loss(m);
  tunecore::def_residual_norm(m);
}
