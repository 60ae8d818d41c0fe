#include "forward.h"

template void tunecore::cuda::attention_forward_of<128>(const AttentionCuda&, void*);
