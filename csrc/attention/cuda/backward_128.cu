#include "backward.h"

template void tunecore::cuda::attention_backward_of<128>(const AttentionCuda&, void*);
