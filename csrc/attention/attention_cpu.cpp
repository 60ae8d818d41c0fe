#include "attention_cpu.h"

#include <algorithm>
#include <vector>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"
#include "../common/scratch.h"

namespace tunecore {
namespace {

void run(const AttentionParams& p, const std::vector<AttentionItem>& items, AttentionKernels::Kernel kernel,
         int64_t bytes, int threads) {
  static thread_local Scratch scratch;
  std::vector<int64_t> cost(items.size());
  for (size_t n = 0; n < items.size(); ++n) {
    const int64_t b = items[n].sequence;
    cost[n] = (items[n].end - items[n].begin) * (p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b]);
  }
  const WorkList list(cost);
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, list.size())));
  char* const memory = scratch.of(size_t(bytes) * size_t(threads));
  parallel_for(list.size(), threads, [&](int64_t n, int worker) {
    const AttentionItem* const next = n + threads < list.size() ? &items[size_t(list[n + threads])] : nullptr;
    kernel(p, items[size_t(list[n])], next, memory + bytes * worker);
  });
}

}  // namespace

const AttentionKernels& attention_kernels() {
  return best<AttentionKernels>({
      {Capability::baseline, &attention_kernels_default},
#ifdef TUNECORE_HAS_ATTENTION_AVX2
      {Capability::avx2, &attention_kernels_avx2},
#endif
#ifdef TUNECORE_HAS_ATTENTION_AVX512
      {Capability::avx512, &attention_kernels_avx512},
#endif
#ifdef TUNECORE_HAS_ATTENTION_AVX512_BF16
      {Capability::avx512_bf16, &attention_kernels_avx512_bf16},
#endif
#ifdef TUNECORE_HAS_ATTENTION_AMX_BF16
      {Capability::amx_bf16, &attention_kernels_amx_bf16},
#endif
  });
}

void attention_forward_cpu(const AttentionParams& p, AttentionType type, int threads, const AttentionKernels& k) {
  std::vector<AttentionItem> items;
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t queries = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b];
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t q = 0; q < queries; q += kAttentionForwardQueries)
        items.push_back({b, h, q, std::min(queries, q + kAttentionForwardQueries)});
  }
  run(p, items, type == AttentionType::f32 ? k.forward_f32 : k.forward_bf16, k.forward_bytes(p), threads);
}

void attention_backward_cpu(AttentionParams p, AttentionType type, float* dbias_BH, int threads,
                            const AttentionKernels& k) {
  std::vector<double> parts(dbias_BH ? size_t(p.sequences * p.heads * p.bucket_count) : 0);
  p.dbias_parts = dbias_BH ? parts.data() : nullptr;
  std::vector<AttentionItem> items;
  for (int64_t b = 0; b < p.sequences; ++b)
    for (int64_t h = 0; h < p.kv_heads; ++h) items.push_back({b, h, 0, p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b]});
  run(p, items, type == AttentionType::f32 ? k.backward_f32 : k.backward_bf16, k.backward_bytes(p), threads);
  if (!dbias_BH) return;
  for (int64_t n = 0; n < p.bucket_count; ++n)
    for (int64_t h = 0; h < p.heads; ++h) {
      double sum = 0.0;
      for (int64_t b = 0; b < p.sequences; ++b) sum += parts[size_t((b * p.heads + h) * p.bucket_count + n)];
      dbias_BH[n * p.heads + h] = float(sum);
    }
}

}  // namespace tunecore
