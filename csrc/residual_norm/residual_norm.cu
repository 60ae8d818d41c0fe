// A block holds a row in registers, kPacks packs of eight elements a thread: memory is read and written once. The sums over
// rows stay in registers while a block goes over its rows.
#include "residual_norm_cuda.h"

#include "../common/cuda/column_sums.h"
#include "../common/cuda/reductions.h"
#include "../dropout/dropout_pack.h"

namespace tunecore::cuda {
namespace {

constexpr int64_t kMostParts = 512;

__device__ __forceinline__ uint64_t key_of(const ResidualNormCuda& c) {
  return c.p.drop_below ? load(global<const uint64_t>(c.rng_key)) : 0;
}

template <class T, bool kWhole, int kPacks, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) norm_forward(const ResidualNormCuda c) {
  TC_SMEM(float, scratch);
  const ResidualNormParams& p = c.p;
  const int width = int(p.width);
  const int64_t row = blockIdx.x, start = row * width;
  const auto row_of = [&](const void* x) { return global<const T>(x) + (x ? start : 0); };
  const auto z_E = row_of(p.plain ? p.z_TE : p.x_TE), residual_E = row_of(p.residual_TE);
  const auto input_bias_E = global<const T>(p.input_bias_E);
  const uint64_t key = key_of(c);
  float z[kPacks][kRowPack], sum = 0.0f;
  for (int k = 0; k < kPacks; ++k) {
    const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
    load_row_pack<kWhole, T>(z[k], z_E, e, width);
    if (!p.plain) {
      float other[kRowPack];
      if (input_bias_E) {
        load_row_pack<kWhole, T>(other, input_bias_E, e, width);
        for (int i = 0; i < kRowPack; ++i) z[k][i] += other[i];
      }
      if (p.drop_below) drop(z[k], key, p, start + e);
      if (residual_E) {
        load_row_pack<kWhole, T>(other, residual_E, e, width);
        for (int i = 0; i < kRowPack; ++i) z[k][i] += other[i];
      }
      for (int i = 0; i < kRowPack; ++i) z[k][i] = rounded<T>(z[k][i]);
      store_row_pack<kWhole, T>(global<T>(p.z_TE) + start, e, width, z[k]);
    }
    for (int i = 0; i < kRowPack; ++i) sum += z[k][i];
  }
  const float mean = p.centred ? block_sum(scratch, sum) / float(width) : 0.0f;
  float squares = 0.0f;
  for (int k = 0; k < kPacks; ++k) {
    const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
    for (int i = 0; i < kRowPack; ++i) squares += e + i < width ? (z[k][i] - mean) * (z[k][i] - mean) : 0.0f;
  }
  const float scale = 1.0f / sqrtf(block_sum(scratch, squares) / float(width) + p.eps);
  const auto weight_E = global<const T>(p.weight_E), bias_E = global<const T>(p.bias_E);
  for (int k = 0; k < kPacks; ++k) {
    const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
    float weight[kRowPack], bias[kRowPack] = {};
    load_row_pack<kWhole, T>(weight, weight_E, e, width);
    if (bias_E) load_row_pack<kWhole, T>(bias, bias_E, e, width);
    for (int i = 0; i < kRowPack; ++i) weight[i] = (z[k][i] - mean) * scale * weight[i] + bias[i];
    store_row_pack<kWhole, T>(global<T>(p.y_TE) + start, e, width, weight);
  }
  if (threadIdx.x == 0) {
    store(global<float>(p.stats_T2), 2 * row, mean);
    store(global<float>(p.stats_T2), 2 * row + 1, scale);
  }
}

// With n = (z - mean) * scale and g = dy * weight: dz = scale (g - mean(g) - n mean(g n)).
template <class T, bool kWhole, int kPacks, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) norm_backward(const ResidualNormCuda c) {
  TC_SMEM(float, scratch);
  const ResidualNormParams& p = c.p;
  const int width = int(p.width);
  const auto weight_E = global<const T>(p.weight_E);
  const auto stats_T2 = global<const float>(p.stats_T2);
  const uint64_t key = key_of(c);
  float sums[kResidualNormSums][kPacks][kRowPack] = {};
  for (int64_t row = blockIdx.x; row < c.rows; row += gridDim.x) {
    const int64_t start = row * width;
    const float mean = load(stats_T2, 2 * row), scale = load(stats_T2, 2 * row + 1);
    float g[kPacks][kRowPack], n[kPacks][kRowPack], g_sum = 0.0f, gn_sum = 0.0f;
    for (int k = 0; k < kPacks; ++k) {
      const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
      float weight[kRowPack];
      load_row_pack<kWhole, T>(n[k], global<const T>(p.z_TE) + start, e, width);
      load_row_pack<kWhole, T>(g[k], global<const T>(p.dy_TE) + start, e, width);
      load_row_pack<kWhole, T>(weight, weight_E, e, width);
      for (int i = 0; i < kRowPack; ++i) {
        n[k][i] = (n[k][i] - mean) * scale;
        sums[0][k][i] += g[k][i] * n[k][i];
        sums[1][k][i] += g[k][i];
        g[k][i] *= weight[i];
        g_sum += g[k][i];
        gn_sum += g[k][i] * n[k][i];
      }
    }
    const float g_mean = p.centred ? block_sum(scratch, g_sum) / float(width) : 0.0f;
    const float gn_mean = block_sum(scratch, gn_sum) / float(width);
    for (int k = 0; k < kPacks; ++k) {
      const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
      for (int i = 0; i < kRowPack; ++i) g[k][i] = (g[k][i] - g_mean - n[k][i] * gn_mean) * scale;
      store_row_pack<kWhole, T>(global<T>(p.dz_TE) + start, e, width, g[k]);
      if (p.dx_TE) {
        drop(g[k], key, p, start + e);
        store_row_pack<kWhole, T>(global<T>(p.dx_TE) + start, e, width, g[k]);
      }
      for (int i = 0; i < kRowPack; ++i) sums[2][k][i] += g[k][i];
    }
  }
  const auto parts = global<float>(c.parts_B3E) + int64_t(blockIdx.x) * kResidualNormSums * width;
  for (int s = 0; s < kResidualNormSums; ++s)
    for (int k = 0; k < kPacks; ++k) {
      const int e = kRowPack * int(threadIdx.x + k * blockDim.x);
      store_row_pack<kWhole, float>(parts + s * width, e, width, sums[s][k]);
    }
}

int64_t parts_of(int64_t rows) { return rows < kMostParts ? rows : kMostParts; }

template <class T, bool kWhole, int kPacks, int kThreads>
void launch_width(const ResidualNormCuda& c, bool forward, void* stream) {
  const unsigned threads = ceil_div(c.p.width, kPacks * kRowPack * kWarp) * kWarp;
  const size_t bytes = threads / kWarp * sizeof(float);
  if (forward) {
    TC_LAUNCH((norm_forward<T, kWhole, kPacks, kThreads>), unsigned(c.rows), threads, bytes, stream, c);
    return;
  }
  const int64_t parts = parts_of(c.rows);
  TC_LAUNCH((norm_backward<T, kWhole, kPacks, kThreads>), unsigned(parts), threads, bytes, stream, c);
  add_up({c.parts_B3E, c.sums_3E, parts, kResidualNormSums * c.p.width}, stream);
}

bool is_whole(const ResidualNormCuda& c) {
  const ResidualNormParams& p = c.p;
  return whole_packs(p.width, p.x_TE, p.residual_TE, p.input_bias_E, p.z_TE, p.weight_E, p.bias_E, p.y_TE, p.dy_TE,
                     p.dz_TE, p.dx_TE, c.parts_B3E);
}

// Two packs a thread up to 256 threads, then one in blocks of up to 1024, whose threads have 64 registers: too few for
// rows taken element by element.
template <class T>
void launch(const ResidualNormCuda& c, bool forward, void* stream) {
  if (!is_whole(c)) return launch_width<T, false, 2, 256>(c, forward, stream);
  c.p.width <= kResidualNormMostUneven ? launch_width<T, true, 2, 256>(c, forward, stream)
                                       : launch_width<T, true, 1, 1024>(c, forward, stream);
}

const char* run(const ResidualNormCuda& c, bool forward, void* stream) {
  if (c.p.width > kResidualNormMostWidth) return "residual_norm: rows of more than 8192 elements";
  if (c.p.width > kResidualNormMostUneven && !is_whole(c))
    return "residual_norm: rows of more than 4096 elements must be multiples of 8 that begin at 16 bytes";
  if (c.p.drop_below && c.p.width % kRowPack) return "residual_norm: dropout wants rows of a multiple of 8";
  if (c.rows > 0x7FFFFFFF) return "residual_norm: more than 2**31 rows";
  if (c.rows == 0 || c.p.width == 0) return nullptr;
  return on_device(c.device, [&] {
    switch (DType(c.dtype)) {
      case DType::f32: return launch<float>(c, forward, stream);
      case DType::bf16: return launch<bf16>(c, forward, stream);
      case DType::f16: return launch<f16>(c, forward, stream);
    }
  });
}

}  // namespace
}  // namespace tunecore::cuda

extern "C" __attribute__((visibility("default"))) int64_t tunecore_cuda_residual_norm_parts(int64_t rows) {
  return tunecore::cuda::parts_of(rows);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_residual_norm_forward(const tunecore::cuda::ResidualNormCuda* c, void* stream) {
  return tunecore::cuda::run(*c, true, stream);
}

TUNECORE_CUDA_ENTRY tunecore_cuda_residual_norm_backward(const tunecore::cuda::ResidualNormCuda* c, void* stream) {
  return tunecore::cuda::run(*c, false, stream);
}
