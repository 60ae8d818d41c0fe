// The chunk kernel on a GPU. All pointers are to memory of `device`.
#pragma once
#include "masked_lm_loss.h"

namespace tunecore::cuda {

struct MaskedLmLossCuda {
  // logits float, bf16 or f16, left alone where there is no `gradient`; a row whose target is outside the vocabulary has
  // loss NaN, so that what nobody checked stays visible.
  MaskedLmLossParams p;
  int64_t rows;
  int64_t ignore_index;  // a row with this target: loss 0, not correct, gradient 0; shapes need not depend on targets
  int32_t device;
  int32_t dtype;
};

}  // namespace tunecore::cuda

// Every row on `stream`; null, or what went wrong.
extern "C" const char* tunecore_cuda_masked_lm_loss(const tunecore::cuda::MaskedLmLossCuda* c, void* stream);
