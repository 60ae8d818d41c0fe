// Attention over packed sequences on a GPU. All pointers, those of `p` included, are to memory of `device`.
#pragma once
#include "attention.h"

namespace tunecore::cuda {

struct AttentionCuda {
  // Rows bf16 or f16 that begin at multiples of 16 bytes; prefix_lens is read only where causal is set. rng_key,
  // longest_q, longest_k and dbias_parts are not looked at: a GPU needs none of the host's numbers of a batch.
  AttentionParams p;
  const int64_t* rng_key;   // scalar; NULL where nothing is dropped
  int64_t key_tokens;       // S
  float* delta_HT;          // backward: scratch
  float* dbias_BH;          // backward: [buckets, H], written; NULL where not wanted
  float* bias_parts;        // backward with dbias_BH: scratch of tunecore_cuda_attention_bias_parts(&c) floats
  int32_t device;
  int32_t dtype;
};

constexpr int64_t kAttentionMostReach = 512;  // of distances whose bias has a gradient: they are summed in shared memory

// Each for one head width, so that every file is compiled by itself; the widths are listed in attention.cu.
template <int kWidth>
void attention_forward_of(const AttentionCuda& c, void* stream);
template <int kWidth>
void attention_backward_of(const AttentionCuda& c, void* stream);

// Blocks of a grid over tiles of `rows` tokens (Tile in cuda/sequence.h).
inline int64_t attention_slots(int64_t tokens, int64_t sequences, int64_t rows) { return tokens / rows + sequences; }

constexpr int kAttentionGradientQueries = 64;  // of a block that makes the gradients of queries and of the bias

}  // namespace tunecore::cuda

extern "C" int64_t tunecore_cuda_attention_bias_parts(const tunecore::cuda::AttentionCuda* c);
extern "C" const char* tunecore_cuda_attention_forward(const tunecore::cuda::AttentionCuda* c, void* stream);
extern "C" const char* tunecore_cuda_attention_backward(const tunecore::cuda::AttentionCuda* c, void* stream);
