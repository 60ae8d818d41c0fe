// The whole batch on the CPU: items over threads, variant by capability.
#pragma once
#include "attention.h"

namespace tunecore {

enum class AttentionType { f32, bf16 };

// The variant of the capability in use.
const AttentionKernels& attention_kernels();

// Fills out_THD and lse_HT. Bit-identical for any number of threads.
void attention_forward_cpu(const AttentionParams& params, AttentionType type, int threads,
                           const AttentionKernels& kernels = attention_kernels());

// Fills dq, dk, dv and, where dbias_BH is not NULL, the gradient of relative_bias_BH.
void attention_backward_cpu(AttentionParams params, AttentionType type, float* dbias_BH, int threads,
                            const AttentionKernels& kernels = attention_kernels());

}  // namespace tunecore
