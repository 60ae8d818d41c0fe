// The C entries of attention: what they refuse, the kernels of each head width (cuda/), and the last steps of the
// gradient of the bias.
#include "../common/cuda/column_sums.h"
#include "attention_cuda.h"

namespace tunecore::cuda {
namespace {

struct Width {
  int64_t width;
  void (*forward)(const AttentionCuda&, void*);
  void (*backward)(const AttentionCuda&, void*);  // null: none for this width
};

// Also in tunecore/ops/_attention_cuda.py.
constexpr Width kWidths[] = {
    {16, attention_forward_of<16>, attention_backward_of<16>},
    {32, attention_forward_of<32>, attention_backward_of<32>},
    {64, attention_forward_of<64>, attention_backward_of<64>},
    {80, attention_forward_of<80>, attention_backward_of<80>},
    {96, attention_forward_of<96>, attention_backward_of<96>},
    {128, attention_forward_of<128>, attention_backward_of<128>},
    {256, attention_forward_of<256>, nullptr},
};

// Positions are int in the kernels, with sums of three of them.
constexpr int64_t kMostTokens = 1 << 29;

int64_t distances_of(const AttentionParams& p) { return 2 * p.reach + 1; }

int64_t parts_of(const AttentionParams& p) {
  return attention_slots(p.tokens, p.sequences, kAttentionGradientQueries);
}

struct BucketSums {
  const float* sums_HN;  // N distances
  const int32_t* buckets_N;
  float* dbias_BH;
  int64_t heads, bucket_count, distances;
};

constexpr int kBucketThreads = 128;

// A thread a bucket and head: the sums of its distances, in their order.
__global__ void __launch_bounds__(kBucketThreads) add_buckets(const BucketSums p) {
  const auto sums_HN = global<const float>(p.sums_HN);
  const auto buckets_N = global<const int32_t>(p.buckets_N);
  const int64_t at = int64_t(blockIdx.x) * kBucketThreads + threadIdx.x, bucket = at / p.heads, head = at % p.heads;
  if (bucket >= p.bucket_count) return;
  float sum = 0.0f;
  for (int64_t n = 0; n < p.distances; ++n)
    if (load(buckets_N, n) == bucket) sum += load(sums_HN, head * p.distances + n);
  store(global<float>(p.dbias_BH), at, sum);
}

void finish_bias_gradient(const AttentionCuda& c, void* stream) {
  const AttentionParams& p = c.p;
  const int64_t columns = p.heads * distances_of(p), parts = p.tokens ? parts_of(p) : 0;
  float* const sums = c.bias_parts + parts * columns;
  add_up({c.bias_parts, sums, parts, columns}, stream);
  const BucketSums buckets{sums, p.buckets, c.dbias_BH, p.heads, p.bucket_count, distances_of(p)};
  TC_LAUNCH(add_buckets, ceil_div(p.bucket_count * p.heads, kBucketThreads), kBucketThreads, 0, stream, buckets);
}

bool whole_rows(const AttentionRows& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.token_stride % 8 == 0 && x.head_stride % 8 == 0;
}

// What is wrong with the arguments, null where nothing is.
const char* refusal(const AttentionCuda& c, bool backward) {
  const AttentionParams& p = c.p;
  if (DType(c.dtype) != DType::bf16 && DType(c.dtype) != DType::f16) return "attention: rows must be bfloat16 or float16";
  if (p.tokens >= kMostTokens || c.key_tokens >= kMostTokens) return "attention: more than 2**29 tokens";
  if (p.heads < 1 || p.heads > 65535 || p.kv_heads < 1 || p.heads % p.kv_heads)
    return "attention: heads must be at most 65535 and a multiple of the kv-heads";
  if (!whole_rows(p.q_THD) || !whole_rows(p.k_SKD) || !whole_rows(p.v_SKD) || (backward && !whole_rows(p.dout_THD)))
    return "attention: rows must begin at multiples of 16 bytes";
  if (p.drop_below && (p.drop_below >= 65536 || !c.rng_key || !p.row_ids))
    return "attention: dropout wants a key, the names of the rows and a threshold below 2**16";
  if ((p.relative_bias_BH != nullptr) != (p.buckets != nullptr) || (c.dbias_BH && !p.buckets))
    return "attention: a table of the bias and its buckets belong together";
  if (c.dbias_BH && p.reach > kAttentionMostReach) return "attention: a gradient of the bias of more than 512 distances";
  return nullptr;
}

const char* run(AttentionCuda c, bool backward, void* stream) {
  if (const char* const reason = refusal(c, backward)) return reason;
  AttentionParams& p = c.p;
  p.window = p.window < kMostTokens ? p.window : 0;
  if (p.sequences == 0 || (!backward && p.tokens == 0)) return nullptr;
  for (const Width& of : kWidths) {
    const auto launch = backward ? of.backward : of.forward;
    if (of.width != p.width || !launch) continue;
    return on_device(c.device, [&] {
      launch(c, stream);
      if (backward && c.dbias_BH) finish_bias_gradient(c, stream);
    });
  }
  return "attention: no kernel for heads of this width";
}

}  // namespace
}  // namespace tunecore::cuda

extern "C" __attribute__((visibility("default"))) int64_t tunecore_cuda_attention_bias_parts(
    const tunecore::cuda::AttentionCuda* c) {
  return (tunecore::cuda::parts_of(c->p) + 1) * c->p.heads * tunecore::cuda::distances_of(c->p);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_attention_forward(const tunecore::cuda::AttentionCuda* c, void* stream) {
  return tunecore::cuda::run(*c, false, stream);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_attention_backward(const tunecore::cuda::AttentionCuda* c, void* stream) {
  return tunecore::cuda::run(*c, true, stream);
}
