#include "backward.h"

template void tunecore::cuda::attention_backward_of<80>(const AttentionCuda&, void*);
