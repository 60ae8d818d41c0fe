// Tokens come sorted by id, so that those of one row of the table are a run. They are cut into stretches of fixed length:
// a block sums the runs of one stretch, and a run that goes on over several (a token type that every token has) is put
// together from their parts in order. No atomics: the sums are the same on every run.
#include "embedding_cuda.h"

#include "../common/cuda/column_sums.h"
#include "../common/cuda/row_packs.h"

namespace tunecore::cuda {
namespace {

constexpr int kStretch = 16, kAhead = 4, kMostThreads = 128;

__device__ __forceinline__ bool has_gradient(const EmbeddingCuda& c, int64_t id) {
  return id >= 0 && id < c.rows && id != c.padding;
}

// The sum of a stretch's first run is a part where the run began before, every other sum is added to the table.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kMostThreads) add_runs(const EmbeddingCuda c) {
  const auto ids_T = global<const int64_t>(c.ids_T), order_T = global<const int64_t>(c.order_T);
  const int width = int(c.width), e = int(blockIdx.y * blockDim.x + threadIdx.x) * kRowPack;
  if (e >= width) return;
  const int64_t first = int64_t(blockIdx.x) * kStretch;
  const int64_t last = first + kStretch < c.tokens ? first + kStretch : c.tokens;
  bool began_before = first > 0 && load(ids_T, first - 1) == load(ids_T, first);
  float sum[kRowPack] = {};
  const auto end_run = [&](int64_t id) {
    if (began_before) {
      store_row_pack<kWhole, float>(global<float>(c.parts_BE) + int64_t(blockIdx.x) * width, e, width, sum);
    } else if (has_gradient(c, id)) {
      const auto row_E = global<float>(c.dtable_VE) + id * width;
      float row[kRowPack];
      load_row_pack<kWhole, float>(row, row_E, e, width);
      for (int i = 0; i < kRowPack; ++i) sum[i] += row[i];
      store_row_pack<kWhole, float>(row_E, e, width, sum);
    }
    began_before = false;
    for (float& x : sum) x = 0.0f;
  };
  for (int64_t t = first; t < last; t += kAhead) {
    float x[kAhead][kRowPack];
    for (int a = 0; a < kAhead; ++a) {  // without a condition, so that all are under way at once
      const int64_t token = load(order_T, t + a < last ? t + a : last - 1);
      load_row_pack<kWhole, T>(x[a], global<const T>(c.dout_TE) + token * width, e, width);
    }
    for (int a = 0; a < kAhead && t + a < last; ++a) {
      const int64_t id = load(ids_T, t + a);
      for (int i = 0; i < kRowPack; ++i) sum[i] += x[a][i];
      if (t + a + 1 == last || load(ids_T, t + a + 1) != id) end_run(id);
    }
  }
}

// Of a block's stretch: the last run, where it begins there and goes on, gets the parts of the stretches after it.
__global__ void __launch_bounds__(kWarp* kSumGroups) join_runs(const EmbeddingCuda c) {
  TC_SMEM(float, sums);
  const auto ids_T = global<const int64_t>(c.ids_T);
  const int64_t first = int64_t(blockIdx.x) * kStretch, last = first + kStretch;
  if (last >= c.tokens) return;
  const int64_t id = load(ids_T, last - 1);
  if (load(ids_T, last) != id || (first > 0 && load(ids_T, first - 1) == id) || !has_gradient(c, id)) return;
  int64_t inside = last, behind = c.tokens;  // the run ends between them
  while (inside + 1 < behind) {
    const int64_t middle = (inside + behind) / 2;
    (load(ids_T, middle) == id ? inside : behind) = middle;
  }
  const int64_t column = int64_t(blockIdx.y) * kWarp + threadIdx.x % kWarp;
  const float sum = sum_of_parts(sums, c.parts_BE, blockIdx.x + 1, inside / kStretch + 1, c.width, column);
  if (threadIdx.x >= kWarp || column >= c.width) return;
  const auto row_E = global<float>(c.dtable_VE) + id * c.width;
  store(row_E, column, load(row_E, column) + sum);
}

int64_t parts_of(int64_t tokens) { return (tokens + kStretch - 1) / kStretch; }

template <class T>
void launch(const EmbeddingCuda& c, void* stream) {
  const unsigned packs = ceil_div(c.width, kRowPack), warps = ceil_div(packs, kWarp);
  const unsigned threads = warps * kWarp < kMostThreads ? warps * kWarp : kMostThreads;
  const dim3 grid(unsigned(parts_of(c.tokens)), ceil_div(packs, threads));
  if (whole_packs(c.width, c.dout_TE, c.dtable_VE, c.parts_BE))
    TC_LAUNCH((add_runs<T, true>), grid, threads, 0, stream, c);
  else
    TC_LAUNCH((add_runs<T, false>), grid, threads, 0, stream, c);
  const dim3 joined(grid.x, ceil_div(c.width, kWarp));
  if (grid.x > 1) TC_LAUNCH(join_runs, joined, kWarp * kSumGroups, kWarp * kSumGroups * sizeof(float), stream, c);
}

}  // namespace
}  // namespace tunecore::cuda

using namespace tunecore::cuda;

extern "C" __attribute__((visibility("default"))) int64_t tunecore_cuda_embedding_parts(int64_t tokens) {
  return parts_of(tokens);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_embedding_backward(const EmbeddingCuda* c, void* stream) {
  if (parts_of(c->tokens) > 0x7FFFFFFF) return "embedding_backward: more than 2**35 tokens";
  if (ceil_div(c->width, kWarp) > 0xFFFF) return "embedding_backward: rows of more than 2**21 elements";
  if (c->tokens == 0 || c->width == 0) return nullptr;
  return on_device(c->device, [&] {
    switch (DType(c->dtype)) {
      case DType::f32: return launch<float>(*c, stream);
      case DType::bf16: return launch<bf16>(*c, stream);
      case DType::f16: return launch<f16>(*c, stream);
    }
  });
}
