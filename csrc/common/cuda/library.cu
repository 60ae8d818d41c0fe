// What the loader asks of the library before it uses it (tunecore/ops/_cuda.py): who built it, for what, and whether the
// two agree on the layout of every parameter.
#include "../../adamw/adamw_cuda.h"
#include "../../attention/attention_cuda.h"
#include "../../bias_gelu/bias_gelu_cuda.h"
#include "../../dropout/dropout_cuda.h"
#include "../../embedding/embedding_cuda.h"
#include "../../masked_lm_loss/masked_lm_loss_cuda.h"
#include "../../residual_norm/residual_norm_cuda.h"
#include "entry.h"
#include "probe.h"

#include <string.h>

#ifndef TUNECORE_VERSION
#define TUNECORE_VERSION "0"
#define TUNECORE_CUDA_ARCHS ""
#endif
#ifndef __CUDACC_VER_MAJOR__
#define __CUDACC_VER_MAJOR__ 0
#define __CUDACC_VER_MINOR__ 0
#endif

namespace {

struct Layout {
  const char* name;
  int64_t bytes;
};

constexpr Layout kLayouts[] = {
    {"AdamWCuda", sizeof(tunecore::cuda::AdamWCuda)},
    {"AdamWTensor", sizeof(tunecore::AdamWTensor)},
    {"AttentionCuda", sizeof(tunecore::cuda::AttentionCuda)},
    {"BiasGeluCuda", sizeof(tunecore::cuda::BiasGeluCuda)},
    {"DropoutCuda", sizeof(tunecore::cuda::DropoutCuda)},
    {"EmbeddingCuda", sizeof(tunecore::cuda::EmbeddingCuda)},
    {"LdmatrixProbe", sizeof(tunecore::cuda::LdmatrixProbe)},
    {"MaskedLmLossCuda", sizeof(tunecore::cuda::MaskedLmLossCuda)},
    {"MmaProbe", sizeof(tunecore::cuda::MmaProbe)},
    {"ResidualNormCuda", sizeof(tunecore::cuda::ResidualNormCuda)},
};

}  // namespace

TUNECORE_CUDA_ENTRY tunecore_cuda_version() { return TUNECORE_VERSION; }

// Compute capabilities with machine code, such as "80 90"; the last one has PTX for later devices.
TUNECORE_CUDA_ENTRY tunecore_cuda_archs() { return TUNECORE_CUDA_ARCHS; }

// Bytes of the struct of that name, -1 where there is none.
extern "C" __attribute__((visibility("default"))) int64_t tunecore_cuda_layout(const char* name) {
  for (const Layout& layout : kLayouts)
    if (!strcmp(layout.name, name)) return layout.bytes;
  return -1;
}

// CUDA of the compiler: 1000 * major + 10 * minor.
extern "C" __attribute__((visibility("default"))) int32_t tunecore_cuda_toolkit() {
  return 1000 * __CUDACC_VER_MAJOR__ + 10 * __CUDACC_VER_MINOR__;
}

// Null where kernels can run on the device, else why not (a driver that is too old, say).
TUNECORE_CUDA_ENTRY tunecore_cuda_check(int32_t device) {
  return tunecore::cuda::on_device(device, [] {
#ifdef __CUDACC__
    cudaFree(nullptr);
#endif
  });
}
