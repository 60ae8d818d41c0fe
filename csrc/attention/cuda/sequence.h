// What of attention does not touch the tensor cores: a block's place in the packed batch, what its queries see, the bias
// of its distances, its dropout bits.
#pragma once
#include "../../common/cuda/entry.h"
#include "../../common/cuda/numbers.h"
#include "../../common/philox.h"
#include "../attention_cuda.h"

namespace tunecore::cuda {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

__device__ __forceinline__ int at_most(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int at_least(int a, int b) { return a > b ? a : b; }

// A lane's place in a fragment (tensor_core.h): g and t.
struct Lane {
  int index = int(threadIdx.x) % kWarp, row = index / 4, column = index % 4 * 2;
};

struct Range {
  int begin, end;
};

// The tile of tokens that is a block's. Sequence b has the slots from begin(b) / kRows + b on: at least as many as it has
// tiles, so that the size of a grid follows from the number of tokens alone. Surplus slots begin behind their sequence.
struct Tile {
  int sequence, first;

  template <int kRows>
  static __device__ __forceinline__ Tile of_block(const int32_t* cu_seqlens, int sequences) {
    const auto begins = global<const int32_t>(cu_seqlens);
    const int slot = int(blockIdx.x);
    int low = 0, high = sequences;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (load(begins, middle) / kRows + middle <= slot ? low : high) = middle;
    }
    return {low, (slot - load(begins, low) / kRows - low) * kRows};
  }
};

struct Sequence {
  int index, first_q, queries, first_k, keys, prefix;

  __device__ __forceinline__ Sequence(const AttentionParams& p, int b) : index(b) {
    const auto cu_q = global<const int32_t>(p.cu_seqlens_q), cu_k = global<const int32_t>(p.cu_seqlens_k);
    first_q = load(cu_q, b), queries = load(cu_q, b + 1) - first_q;
    first_k = load(cu_k, b), keys = load(cu_k, b + 1) - first_k;
    prefix = p.prefix_lens ? load(global<const int32_t>(p.prefix_lens), b) : 0;
  }

  // The key that query i stands at: the last query stands at the last key.
  __device__ __forceinline__ int place(int i) const { return i + keys - queries; }

  // Every mask leaves one interval of keys; both its ends rise with i.
  __device__ __forceinline__ Range seen_by(const AttentionParams& p, int i) const {
    const int at = place(i), window = int(p.window);
    int begin = 0, end = keys;
    if (p.causal) end = at_most(end, at_least(at + 1, prefix));
    if (window) begin = at_least(0, at - window + 1), end = at_most(end, at + window);
    return end > begin ? Range{begin, end} : Range{0, 0};
  }

  // No key outside is seen by any of the queries [first, last).
  __device__ __forceinline__ Range seen_by(const AttentionParams& p, int first, int last) const {
    return {seen_by(p, first).begin, seen_by(p, last - 1).end};
  }

  // No query outside sees any of the keys [first, last).
  __device__ __forceinline__ Range that_see(const AttentionParams& p, int first, int last) const {
    const int shift = keys - queries, window = int(p.window);
    int begin = 0, end = queries;
    if (p.causal && prefix <= first) begin = first - shift;
    if (window) begin = at_least(begin, first - window + 1 - shift), end = at_most(end, last + window - 1 - shift);
    return {at_least(begin, 0), end};
  }

  // Whether each of the queries [first, last) sees all the keys [first_key, last_key).
  __device__ __forceinline__ bool all_seen(const AttentionParams& p, int first, int last, int first_key,
                                           int last_key) const {
    return seen_by(p, first).end >= last_key && seen_by(p, last - 1).begin <= first_key;
  }
};

__host__ __device__ __forceinline__ bool has_bias(const AttentionParams& p) {
  return p.alibi_slopes || p.relative_bias_BH;
}

// A query's log-denominator in units of log2; infinite where it sees nothing, or is none, so that it has no weights.
__device__ __forceinline__ float load_lse(const AttentionParams& p, int head, int token, bool inside) {
  const float lse = inside ? load(global<const float>(p.lse_HT), head * p.tokens + token) : -INFINITY;
  return lse == -INFINITY ? INFINITY : lse * kLog2E;
}

// bias[n] for the distances lowest + n, in units of log2; by all threads of the block.
__device__ __forceinline__ void fill_bias(const AttentionParams& p, Shared<float> bias, int head, int lowest, int count) {
  const int reach = int(p.reach);
  for (int n = int(threadIdx.x); n < count; n += int(blockDim.x)) {
    const int d = lowest + n;
    float value = 0.0f;
    if (p.alibi_slopes) value -= load(global<const float>(p.alibi_slopes), head) * float(d < 0 ? -d : d);
    if (p.relative_bias_BH) {
      const int bucket = load(global<const int32_t>(p.buckets), at_least(-reach, at_most(d, reach)) + reach);
      const bool inside = bucket >= 0 && bucket < p.bucket_count;  // another one shows as NaN
      value += inside ? load(global<const float>(p.relative_bias_BH), bucket * p.heads + head) : NAN;
    }
    store(bias, n, value * kLog2E);
  }
}

// Dropout of one sequence and head: the words of the CPU's kernels.
struct Dropout {
  uint32_t k0 = 0, k1 = 0, row_id = 0, head = 0, drop_below;
  float grown;  // factor of what is kept

  __device__ __forceinline__ Dropout(const AttentionCuda& c, int sequence, int of_head)
      : head(uint32_t(of_head)), drop_below(c.p.drop_below), grown(keep_scale(c.p.drop_below)) {
    if (!drop_below) return;
    const uint64_t key = uint64_t(load(global<const int64_t>(c.rng_key)));
    k0 = philox_site_key(key, c.p.site), k1 = uint32_t(key >> 32);
    row_id = uint32_t(load(global<const int64_t>(c.p.row_ids), sequence));
  }

  // Bit e: whether query i keeps key 8 * octet + e.
  __device__ __forceinline__ uint32_t kept(int i, int octet) const {
    const Philox4 r = philox4x32_10(k0, k1, uint32_t(octet), uint32_t(i), head, row_id);
    uint32_t bits = 0;
    TC_UNROLL
    for (int e = 0; e < 8; ++e) bits |= uint32_t((r.w[e / 2] >> 16 * (e % 2) & 0xFFFFu) >= drop_below) << e;
    return bits;
  }

  // Bit n: whether query i, the same for the four lanes of a row, keeps key first + n; first is a multiple of 8, kKeys 16
  // or 32. Each lane draws for eight keys.
  template <int kKeys>
  __device__ __forceinline__ uint32_t kept_of_row(int i, int first) const {
    const int octet = Lane().index % (kKeys / 8);
    uint32_t bits = kept(i, first / 8 + octet) << 8 * octet;
    bits |= __shfl_xor_sync(kAllLanes, bits, 1);
    if (kKeys == 32) bits |= __shfl_xor_sync(kAllLanes, bits, 2);
    return bits;
  }

  // Of sixteen keys from `first` on (a multiple of 16) and the pair of queries i, i + 1: bit n for query i and key n, bit
  // 16 + n for query i + 1. Lane l has the word of pair l % kPairs from the pair `query` on.
  template <int kPairs>
  __device__ __forceinline__ uint32_t kept_of_pairs(int query, int first) const {
    static_assert(kPairs == 16 || kPairs == 32, "a lane has a word");
    const int lane = Lane().index, i = query + lane % kPairs * 2;
    uint32_t word = 0;
    for (int octet = lane / kPairs; octet < 2; octet += kWarp / kPairs)
      word |= (kept(i, first / 8 + octet) | kept(i + 1, first / 8 + octet) << 16) << 8 * octet;
    if (kPairs == 16) word |= __shfl_xor_sync(kAllLanes, word, 16);
    return word;
  }
};

}  // namespace
}  // namespace tunecore::cuda
