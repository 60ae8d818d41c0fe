#include "forward.h"

template void tunecore::cuda::attention_forward_of<256>(const AttentionCuda&, void*);
