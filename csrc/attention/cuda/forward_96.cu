#include "forward.h"

template void tunecore::cuda::attention_forward_of<96>(const AttentionCuda&, void*);
