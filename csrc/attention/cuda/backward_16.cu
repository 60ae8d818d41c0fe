#include "backward.h"

template void tunecore::cuda::attention_backward_of<16>(const AttentionCuda&, void*);
