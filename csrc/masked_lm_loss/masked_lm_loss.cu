// A block a row. The first sweep makes maximum and denominator together (the online softmax of Milakov and Gimelshein
// 2018, arXiv 1805.02867), the second writes the gradient over the logits, which the cache still holds.
#include "masked_lm_loss_cuda.h"

#include "../common/cuda/entry.h"
#include "../common/cuda/numbers.h"

namespace tunecore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// exp(z - top), 1 where both are the same infinity.
__device__ __forceinline__ float weight_of(float z, float top) { return z == top ? 1.0f : expf(z - top); }

struct RowState {
  float top = -INFINITY;
  int first = 0x7FFFFFFF;    // index of the first element that is `top`
  float denominator = 0.0f;  // sum of exp(z - top)
  float sum = 0.0f;          // of z

  template <int N>
  __device__ __forceinline__ void add(int v, const float (&z)[N]) {
    float largest = z[0];
    for (int i = 1; i < N; ++i) largest = z[i] > largest ? z[i] : largest;
    if (largest > top) {
      denominator *= weight_of(top, largest);
      top = largest;
      for (int i = N - 1; i >= 0; --i) first = z[i] == largest ? v + i : first;
    }
    for (int i = 0; i < N; ++i) denominator += weight_of(z[i], top), sum += z[i];
  }

  __device__ __forceinline__ void merge(float other_top, int other_first, float other_denominator, float other_sum) {
    const float larger = other_top > top ? other_top : top;
    if (other_top > top)
      first = other_first;
    else if (other_top == top)
      first = other_first < first ? other_first : first;
    denominator = denominator * weight_of(top, larger) + other_denominator * weight_of(other_top, larger);
    top = larger;
    sum += other_sum;
  }
};

// Every thread's state merged, in all threads; scratch holds four floats a warp.
__device__ __forceinline__ void merge_block(Shared<float> scratch, RowState& state) {
  for (int step = 16; step; step /= 2) {
    const float top = __shfl_xor_sync(kAllLanes, state.top, step);
    const int first = __shfl_xor_sync(kAllLanes, state.first, step);
    const float denominator = __shfl_xor_sync(kAllLanes, state.denominator, step);
    const float sum = __shfl_xor_sync(kAllLanes, state.sum, step);
    state.merge(top, first, denominator, sum);
  }
  const Shared<int> firsts = pointer_cast<int>(scratch + 3 * kWarps);
  if (threadIdx.x % kWarp == 0) {
    const int warp = int(threadIdx.x) / kWarp;
    store(scratch, warp, state.top);
    store(scratch, kWarps + warp, state.denominator);
    store(scratch, 2 * kWarps + warp, state.sum);
    store(firsts, warp, state.first);
  }
  __syncthreads();
  state = RowState();
  for (int w = 0; w < kWarps; ++w)
    state.merge(load(scratch, w), load(firsts, w), load(scratch, kWarps + w), load(scratch, 2 * kWarps + w));
}

// body(v, z) for this thread's elements v, v + 1 ... of the row, bias added, in packs of 16 bytes where they are aligned;
// where kStore, what body leaves in z is written back.
template <bool kStore, class T, class Body>
__device__ __forceinline__ void sweep(Global<T> row_V, Global<const float> bias_V, int vocab, const Body& body) {
  constexpr int kPack = 16 / sizeof(T);
  const int thread = int(threadIdx.x), unaligned = elements_to_alignment(row_V);
  const int head = unaligned < vocab ? unaligned : vocab, tail = head + (vocab - head) / kPack * kPack;
  const auto one = [&](int v) {
    float z[1] = {to_float(load(row_V, v))};
    if (bias_V) z[0] += load(bias_V, v);
    body(v, z);
    if (kStore) store(row_V, v, from_float<T>(z[0]));
  };
  if (thread < head) one(thread);
  for (int v = head + thread * kPack; v < tail; v += kThreads * kPack) {
    Pack<T, kPack> pack = load_pack<kPack>(row_V, v);
    float z[kPack];
    for (int i = 0; i < kPack; ++i) z[i] = to_float(pack.v[i]) + (bias_V ? load(bias_V, v + i) : 0.0f);
    body(v, z);
    if constexpr (kStore) {
      for (int i = 0; i < kPack; ++i) pack.v[i] = from_float<T>(z[i]);
      store_pack(row_V, v, pack);
    }
  }
  if (tail + thread < vocab) one(tail + thread);
}

template <class T>
__global__ void __launch_bounds__(kThreads) softmax_row(const MaskedLmLossCuda c) {
  TC_SMEM(float, scratch);
  const MaskedLmLossParams& p = c.p;
  const int64_t row = blockIdx.x;
  const int vocab = int(p.vocab);
  const Global<T> row_V = global<T>(p.logits_NV) + row * p.row_stride;
  const auto bias_V = global<const float>(p.bias_V);
  const int64_t target = load(global<const int64_t>(p.targets_N), row);
  const bool inside = target >= 0 && target < vocab, first_thread = threadIdx.x == 0;
  if (!inside) {  // the same for the whole block
    const float value = target == c.ignore_index ? 0.0f : NAN;
    if (first_thread) store(global<double>(p.loss_N), row, double(value));
    if (first_thread) store(global<uint8_t>(p.correct_N), row, uint8_t(0));
    const auto fill = [&](int, auto& z) {
      for (float& x : z) x = value;
    };
    if (p.gradient) sweep<true>(row_V, bias_V, vocab, fill);
    return;
  }
  RowState state;
  sweep<false>(row_V, bias_V, vocab, [&](int v, auto& z) { state.add(v, z); });
  float at_target = to_float(load(row_V, target));
  if (bias_V) at_target += load(bias_V, target);
  merge_block(scratch, state);

  const float smoothing = p.label_smoothing;
  if (first_thread) {
    const double log_denominator = log(double(state.denominator)), lse = double(state.top) + log_denominator;
    double loss = log_denominator - (1.0 - double(smoothing)) * double(at_target - state.top) + double(p.z_loss) * lse * lse;
    if (smoothing != 0.0f) loss -= double(smoothing) * (double(state.sum) / double(vocab) - double(state.top));
    store(global<double>(p.loss_N), row, loss);
    store(global<uint8_t>(p.correct_N), row, uint8_t(state.first == target));
  }
  if (!p.gradient) return;
  const float lse = state.top + logf(state.denominator);
  const float scale = (1.0f + 2.0f * p.z_loss * lse) / state.denominator, off = smoothing / float(vocab);
  sweep<true>(row_V, bias_V, vocab, [&](int v, auto& z) {
    for (float& x : z) {
      x = weight_of(x, state.top) * scale - off;
      if (v++ == target) x -= 1.0f - smoothing;
    }
  });
}

template <class T>
void launch_rows(const MaskedLmLossCuda& c, void* stream) {
  TC_LAUNCH(softmax_row<T>, unsigned(c.rows), kThreads, 4 * kWarps * sizeof(float), stream, c);
}

}  // namespace
}  // namespace tunecore::cuda

using namespace tunecore::cuda;

TUNECORE_CUDA_ENTRY tunecore_cuda_masked_lm_loss(const MaskedLmLossCuda* c, void* stream) {
  if (c->p.vocab > 0x7FFFFFFF - 16 || c->rows > 0x7FFFFFFF) return "masked_lm_loss: more than 2**31 rows or columns";
  if (c->rows == 0 || c->p.vocab == 0) return nullptr;
  return on_device(c->device, [&] {
    switch (DType(c->dtype)) {
      case DType::f32: return launch_rows<float>(*c, stream);
      case DType::bf16: return launch_rows<bf16>(*c, stream);
      case DType::f16: return launch_rows<f16>(*c, stream);
    }
  });
}
