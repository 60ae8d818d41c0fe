#include "forward.h"

template void tunecore::cuda::attention_forward_of<16>(const AttentionCuda&, void*);
