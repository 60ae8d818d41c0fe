// One warp's mma and ldmatrix with every register given and taken, so that a test can hold the fragment layouts against
// plain loops: under the emulation always, on a GPU where there is one.
#include "entry.h"
#include "probe.h"
#include "tensor_core.h"

namespace tunecore::cuda {
namespace {

template <class T>
__global__ void probe_mma(const MmaProbe p) {
  const auto a_L4 = global<const uint32_t>(p.a_L4), b_L2 = global<const uint32_t>(p.b_L2);
  const auto d_L4 = global<float>(p.d_L4);
  const int lane = int(threadIdx.x);
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = load(a_L4, 4 * lane + i), d[i] = load(d_L4, 4 * lane + i);
  for (int i = 0; i < 2; ++i) b[i] = load(b_L2, 2 * lane + i);
  mma_16x8x16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) store(d_L4, 4 * lane + i, d[i]);
}

template <int kTiles, bool kTransposed>
__global__ void probe_ldmatrix(const LdmatrixProbe p) {
  TC_SMEM(uint16_t, tiles);
  const int lane = int(threadIdx.x);
  cp_async_16(tiles + 8 * lane, global<const uint16_t>(p.rows_L8) + 8 * lane, lane < 8 * kTiles);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[kTiles];
  ldmatrix<kTransposed>(r, tiles + 8 * lane);
  for (int i = 0; i < kTiles; ++i) store(global<uint32_t>(p.r_LN), kTiles * lane + i, r[i]);
}

template <bool kTransposed>
void launch_ldmatrix(const LdmatrixProbe& p, void* stream) {
  const size_t bytes = 32 * 16;
  if (p.tiles == 1) TC_LAUNCH((probe_ldmatrix<1, kTransposed>), 1, 32, bytes, stream, p);
  if (p.tiles == 2) TC_LAUNCH((probe_ldmatrix<2, kTransposed>), 1, 32, bytes, stream, p);
  if (p.tiles == 4) TC_LAUNCH((probe_ldmatrix<4, kTransposed>), 1, 32, bytes, stream, p);
}

}  // namespace
}  // namespace tunecore::cuda

using namespace tunecore::cuda;

TUNECORE_CUDA_ENTRY tunecore_cuda_probe_mma(const MmaProbe* p, void* stream) {
  return on_device(p->device, [&] {
    if (DType(p->dtype) == DType::bf16)
      TC_LAUNCH(probe_mma<bf16>, 1, 32, 0, stream, *p);
    else
      TC_LAUNCH(probe_mma<f16>, 1, 32, 0, stream, *p);
  });
}

TUNECORE_CUDA_ENTRY tunecore_cuda_probe_ldmatrix(const LdmatrixProbe* p, void* stream) {
  if (p->tiles != 1 && p->tiles != 2 && p->tiles != 4) return "probe_ldmatrix: tiles must be 1, 2 or 4";
  return on_device(p->device, [&] { p->transposed ? launch_ldmatrix<true>(*p, stream) : launch_ldmatrix<false>(*p, stream); });
}
