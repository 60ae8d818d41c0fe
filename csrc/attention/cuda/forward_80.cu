#include "forward.h"

template void tunecore::cuda::attention_forward_of<80>(const AttentionCuda&, void*);
