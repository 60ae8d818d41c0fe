#include "backward.h"

template void tunecore::cuda::attention_backward_of<96>(const AttentionCuda&, void*);
