// Attention over packed sequences: parameters, work items and the table of kernels.
// Shape letters: T queries, S keys, H heads, K kv-heads, D head width, B sequences. May be included by per-ISA files.
#pragma once
#include <stdint.h>

namespace tunecore {

// [tokens, heads, D]; D is adjacent, strides are in elements.
struct AttentionRows {
  const void* data;
  int64_t token_stride, head_stride;
};

struct AttentionParams {
  AttentionRows q_THD, k_SKD, v_SKD;
  int64_t tokens, heads, kv_heads, width;  // T, H, K, D; D is a multiple of 16, at most 256
  const int32_t *cu_seqlens_q, *cu_seqlens_k;
  int64_t sequences, longest_q, longest_k;
  bool causal;
  const int32_t* prefix_lens;  // [B] or NULL
  int64_t window;              // 0: none
  float scale;
  const float* alibi_slopes;      // [H] or NULL
  const float* relative_bias_BH;  // [buckets, H] or NULL
  const int32_t* buckets;         // [2 * reach + 1], each in [0, bucket_count)
  int64_t reach, bucket_count;
  uint32_t drop_below;  // dropout drops an element whose 16 random bits are below this; 0: no dropout
  uint64_t rng_key;
  uint32_t site;
  const int64_t* row_ids;  // [B]

  void* out_THD;  // contiguous
  float* lse_HT;

  // Backward only; out_THD and lse_HT are inputs then.
  AttentionRows dout_THD;
  void *dq_THD, *dk_SKD, *dv_SKD;  // contiguous, in the type of q
  double* dbias_parts;             // [B, H, buckets], zeroed; NULL where not wanted
};

// One piece of work of one thread. Forward: queries [begin, end) of one head; backward: all heads of one kv-head.
struct AttentionItem {
  int64_t sequence, head, begin, end;
};

struct AttentionKernels {
  // `next` is what this thread is likely to be given next, or NULL.
  using Kernel = void (*)(const AttentionParams& p, const AttentionItem& item, const AttentionItem* next, char* scratch);

  // Bytes of scratch memory an item may need.
  int64_t (*forward_bytes)(const AttentionParams& p);
  int64_t (*backward_bytes)(const AttentionParams& p);
  Kernel forward_f32, forward_bf16, backward_f32, backward_bf16;
};

// Most queries of a forward item: a long sequence is shared between threads, each packing the keys for itself.
constexpr int64_t kAttentionForwardQueries = 384;

extern const AttentionKernels attention_kernels_default;
extern const AttentionKernels attention_kernels_avx2;
extern const AttentionKernels attention_kernels_avx512;
extern const AttentionKernels attention_kernels_avx512_bf16;
extern const AttentionKernels attention_kernels_amx_bf16;

}  // namespace tunecore
