// The gradient of an embedding table: rows of gradients added to the rows of the table that were looked up.
// Bound by memory, so one source for every processor. Bit-identical for any number of threads.
#pragma once
#include <cstdint>

namespace tunecore {

enum class EmbeddingType { f32, bf16 };

struct EmbeddingParams {
  const void* dout_TE;
  const int64_t* ids_T;  // each in [0, V), or equal to `padding`
  float* dtable_VE;      // added to
  int64_t tokens, width;
  int64_t padding;       // an id whose row gets no gradient; -1 for none
};

void embedding_backward_cpu(const EmbeddingParams& params, EmbeddingType type, int threads);

}  // namespace tunecore
