#include "transpose_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/cpu/integers.h"
#include "../common/parallel.h"

namespace tunecore {

void transpose_cpu(const TransposeParams& p, int threads) {
  const TransposeKernels& kernels = best<TransposeKernels>({
      {Capability::baseline, &transpose_kernels_default},
#ifdef TUNECORE_HAS_TRANSPOSE_AVX512
      {Capability::avx512, &transpose_kernels_avx512},
#endif
  });
  constexpr int64_t kStrip = 128;  // a cache line of each of its rows of out stays in cache until it is full
  parallel_for(parts(p.columns, kStrip), threads, [&](int64_t strip, int) {
    kernels.rows_of_out(p, strip * kStrip, std::min(p.columns, (strip + 1) * kStrip));
  });
}

}  // namespace tunecore
