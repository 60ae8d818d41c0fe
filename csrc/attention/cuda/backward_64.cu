#include "backward.h"

template void tunecore::cuda::attention_backward_of<64>(const AttentionCuda&, void*);
