// A thread takes the eight elements of one Philox block, so that no word is drawn twice.
#include "dropout_cuda.h"

#include "../common/cuda/entry.h"
#include "dropout_pack.h"

namespace tunecore::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads) dropout(const DropoutCuda c) {
  const DropoutParams& p = c.p;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kRowPack;
  if (first >= p.count) return;
  const int left = p.count - first < kRowPack ? int(p.count - first) : kRowPack;
  const auto in = global<const T>(p.x) + first;
  const auto out = global<T>(p.out) + first;
  float x[kRowPack];
  if (kWhole && left == kRowPack)
    load_row_pack<true, T>(x, in, 0, left);
  else
    load_row_pack<false, T>(x, in, 0, left);
  drop(x, load(global<const uint64_t>(c.rng_key)), p, first);
  if (kWhole && left == kRowPack)
    store_row_pack<true, T>(out, 0, left, x);
  else
    store_row_pack<false, T>(out, 0, left, x);
}

template <class T>
void launch(const DropoutCuda& c, void* stream) {
  const unsigned blocks = ceil_div(c.p.count, kThreads * kRowPack);
  if (whole_packs(kRowPack, c.p.x, c.p.out))  // the last pack looks after itself
    TC_LAUNCH((dropout<T, true>), blocks, kThreads, 0, stream, c);
  else
    TC_LAUNCH((dropout<T, false>), blocks, kThreads, 0, stream, c);
}

}  // namespace
}  // namespace tunecore::cuda

using namespace tunecore::cuda;

TUNECORE_CUDA_ENTRY tunecore_cuda_dropout(const DropoutCuda* c, void* stream) {
  if (c->p.drop_below > 65535) return "dropout: drop_below must be less than 65536";
  if (c->p.count > int64_t(0x7FFFFFFF) * kThreads * kRowPack) return "dropout: more than 2**42 elements";
  if (c->p.count == 0) return nullptr;
  return on_device(c->device, [&] {
    switch (DType(c->dtype)) {
      case DType::f32: return launch<float>(*c, stream);
      case DType::bf16: return launch<bf16>(*c, stream);
      case DType::f16: return launch<f16>(*c, stream);
    }
  });
}
