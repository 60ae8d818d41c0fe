// All tensors on the CPU: blocks over threads, variant by capability. Bit-identical for any number of threads.
#pragma once
#include <vector>

#include "adamw.h"

namespace tunecore {

// Rows of a weight [count / width, width] that have a gradient, [row_count, width]: distinct and ascending. Width 0: all
// elements have one.
struct AdamWRows {
  const int64_t* rows = nullptr;
  int64_t row_count = 0, width = 0;
};

struct AdamWItem {
  AdamWTensor tensor;
  AdamWRows some;
};

void adamw_cpu(const std::vector<AdamWItem>& items, const AdamWParams& params, int threads);

}  // namespace tunecore
