// Backward: the weights are made again from the saved log-denominators (Dao et al. 2022, arXiv 2205.14135, appendix B) by
// two kernels, one over tiles of queries (query_gradient.h), then one over tiles of keys (key_gradient.h). That costs two
// more products a tile than one kernel for all, and no gradient is added up by atomics: every run gives the same bits.
#pragma once
#include "key_gradient.h"
#include "query_gradient.h"

namespace tunecore::cuda {
namespace {

template <class T, int kD>
void launch_backward(const AttentionCuda& c, void* stream) {
  if (c.p.tokens) launch_query_gradient<T, kD>(c, stream);
  if (c.key_tokens) launch_key_gradient<T, kD>(c, stream);
}

}  // namespace

template <int kD>
void attention_backward_of(const AttentionCuda& c, void* stream) {
  if (DType(c.dtype) == DType::bf16)
    launch_backward<bf16, kD>(c, stream);
  else
    launch_backward<f16, kD>(c, stream);
}

}  // namespace tunecore::cuda
