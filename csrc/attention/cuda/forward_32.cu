#include "forward.h"

template void tunecore::cuda::attention_forward_of<32>(const AttentionCuda&, void*);
