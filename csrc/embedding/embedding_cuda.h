// The gradient of an embedding table on a GPU. All pointers are to memory of `device`.
#pragma once
#include <stdint.h>

namespace tunecore::cuda {

struct EmbeddingCuda {
  const void* dout_TE;     // float, bf16 or f16
  const int64_t* ids_T;    // sorted; one outside [0, rows) gets no gradient
  const int64_t* order_T;  // the token of each; those of one id in rising order
  float* dtable_VE;        // added to
  float* parts_BE;         // scratch, B = tunecore_cuda_embedding_parts(tokens)
  int64_t tokens, width, rows;
  int64_t padding;         // an id whose row gets no gradient; -1 for none
  int32_t device;
  int32_t dtype;
};

}  // namespace tunecore::cuda

extern "C" int64_t tunecore_cuda_embedding_parts(int64_t tokens);
extern "C" const char* tunecore_cuda_embedding_backward(const tunecore::cuda::EmbeddingCuda* c, void* stream);
