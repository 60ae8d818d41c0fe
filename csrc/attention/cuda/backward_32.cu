#include "backward.h"

template void tunecore::cuda::attention_backward_of<32>(const AttentionCuda&, void*);
