#include "forward.h"

template void tunecore::cuda::attention_forward_of<64>(const AttentionCuda&, void*);
