// A block takes 256 columns, eight a lane, and every kGroups-th row a warp; the bias is read once, its gradient summed in
// registers.
#include "bias_gelu_cuda.h"

#include "../common/cuda/column_sums.h"
#include "../common/cuda/row_packs.h"

namespace tunecore::cuda {
namespace {

constexpr int kGroups = 8, kThreads = kGroups * kWarp, kColumns = kRowPack * kWarp;
constexpr int64_t kMostParts = 64, kMostRowBlocks = 4096;

struct Gelu {
  float value, slope;
};

// erfc keeps the relative accuracy of the far tail, which 1 + erf(x) loses.
__device__ __forceinline__ Gelu gelu_erf(float x) {
  const float below = 0.5f * erfcf(-0.707106781f * x);
  const float density = 0.398942280f * expf(-0.5f * x * x);
  return {x * below, below + (density == 0.0f ? 0.0f : x * density)};
}

// x s with s = (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3); past 20 s is 0 or 1.
__device__ __forceinline__ Gelu gelu_tanh(float x) {
  const float near = x > 20.0f ? 20.0f : x < -20.0f ? -20.0f : x, square = near * near;
  const float s = 1.0f / (1.0f + expf(-2.0f * near * (0.797884561f + 0.0356774081f * square)));
  const float du = 0.797884561f + 0.107032224f * square;
  return {x * s, s + 2.0f * near * s * (1.0f - s) * du};
}

template <bool kTanh>
__device__ __forceinline__ Gelu gelu(float x) {
  return kTanh ? gelu_tanh(x) : gelu_erf(x);
}

template <class T, bool kWhole, bool kTanh, bool kForward>
__global__ void __launch_bounds__(kThreads) bias_gelu(const BiasGeluCuda c) {
  const BiasGeluParams& p = c.p;
  const int lane = int(threadIdx.x) % kWarp, group = int(threadIdx.x) / kWarp;
  const int width = int(p.width), f = int(blockIdx.x) * kColumns + lane * kRowPack;
  float bias[kRowPack] = {}, sum[kRowPack] = {};
  if (p.bias_F) load_row_pack<kWhole, T>(bias, global<const T>(p.bias_F), f, width);
  for (int64_t row = int64_t(blockIdx.y) * kGroups + group; row < c.rows; row += int64_t(gridDim.y) * kGroups) {
    float x[kRowPack], dout[kRowPack] = {};
    load_row_pack<kWhole, T>(x, global<const T>(p.x_TF) + row * width, f, width);
    if (!kForward) load_row_pack<kWhole, T>(dout, global<const T>(p.dout_TF) + row * width, f, width);
    for (int i = 0; i < kRowPack; ++i) {
      const Gelu at = gelu<kTanh>(x[i] + bias[i]);
      x[i] = kForward ? at.value : at.slope * dout[i];
      sum[i] += x[i];
    }
    store_row_pack<kWhole, T>(global<T>(p.out_TF) + row * width, f, width, x);
  }
  if constexpr (!kForward) {
    if (!c.dbias_F) return;
    TC_SMEM(float, sums);
    for (int i = 0; i < kRowPack; ++i) store(sums, group * kColumns + i * kWarp + lane, sum[i]);
    __syncthreads();
    if (group) return;
    for (int i = 0; i < kRowPack; ++i)
      for (int g = 1; g < kGroups; ++g) sum[i] += load(sums, g * kColumns + i * kWarp + lane);
    store_row_pack<kWhole, float>(global<float>(c.parts_BF) + int64_t(blockIdx.y) * width, f, width, sum);
  }
}

int64_t row_blocks(int64_t rows, int64_t most) {
  const int64_t wanted = (rows + kGroups - 1) / kGroups;
  return wanted < most ? wanted : most;
}

template <class T, bool kWhole, bool kTanh, bool kForward>
void launch_kind(const BiasGeluCuda& c, void* stream) {
  const dim3 grid(ceil_div(c.p.width, kColumns), unsigned(row_blocks(c.rows, kForward ? kMostRowBlocks : kMostParts)));
  const size_t bytes = kForward ? 0 : kGroups * kColumns * sizeof(float);
  TC_LAUNCH((bias_gelu<T, kWhole, kTanh, kForward>), grid, kThreads, bytes, stream, c);
  if (!kForward && c.dbias_F) add_up({c.parts_BF, c.dbias_F, int64_t(grid.y), c.p.width}, stream);
}

template <class T, bool kForward>
void launch(const BiasGeluCuda& c, void* stream) {
  const BiasGeluParams& p = c.p;
  const bool whole = whole_packs(p.width, p.x_TF, p.bias_F, p.dout_TF, p.out_TF, c.parts_BF);
  if (p.tanh)
    whole ? launch_kind<T, true, true, kForward>(c, stream) : launch_kind<T, false, true, kForward>(c, stream);
  else
    whole ? launch_kind<T, true, false, kForward>(c, stream) : launch_kind<T, false, false, kForward>(c, stream);
}

template <bool kForward>
const char* run(const BiasGeluCuda& c, void* stream) {
  if (c.p.width > 0x7FFFFFFF - kColumns) return "bias_gelu: more than 2**31 columns";
  if (c.rows == 0 || c.p.width == 0) return nullptr;
  return on_device(c.device, [&] {
    switch (DType(c.dtype)) {
      case DType::f32: return launch<float, kForward>(c, stream);
      case DType::bf16: return launch<bf16, kForward>(c, stream);
      case DType::f16: return launch<f16, kForward>(c, stream);
    }
  });
}

}  // namespace
}  // namespace tunecore::cuda

extern "C" __attribute__((visibility("default"))) int64_t tunecore_cuda_bias_gelu_parts(int64_t rows) {
  return tunecore::cuda::row_blocks(rows, tunecore::cuda::kMostParts);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_bias_gelu_forward(const tunecore::cuda::BiasGeluCuda* c, void* stream) {
  return tunecore::cuda::run<true>(*c, stream);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_bias_gelu_backward(const tunecore::cuda::BiasGeluCuda* c, void* stream) {
  return tunecore::cuda::run<false>(*c, stream);
}
