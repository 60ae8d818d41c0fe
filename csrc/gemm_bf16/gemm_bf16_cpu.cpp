#include "gemm_bf16_cpu.h"

#include <algorithm>

#include "../common/cpu/capability.h"
#include "../common/cpu/integers.h"
#include "../common/parallel.h"
#include "../common/scratch.h"

namespace tunecore {
namespace {

// An item: its float32 sums (384 KiB) and panels of B (768 KiB at the depth of a pass) stay in the second-level cache.
constexpr int64_t kTall = 128, kWide = 768, kLeastTall = 32, kLeastWide = 128;
constexpr int kItemsPerThread = 4;

}  // namespace

const GemmBf16Kernels* gemm_bf16_kernels() {
#ifdef TUNECORE_HAS_GEMM_BF16_AMX_BF16
  if (capability() >= Capability::amx_bf16) return &gemm_bf16_kernels_amx_bf16;
#endif
  return nullptr;
}

void gemm_bf16_cpu(const GemmBf16Params& p, int threads, const GemmBf16Kernels& kernels) {
  static thread_local Scratch memory;
  const int64_t panels = parts(p.columns, kGemmBf16Panel), panel_units = kGemmBf16Panel * p.depth / 2;
  int64_t tall = kTall, wide = kWide;
  const auto too_few = [&] { return parts(p.rows, tall) * parts(p.columns, wide) < kItemsPerThread * int64_t(threads); };
  while (threads > 1 && tall > kLeastTall && too_few()) tall /= 2;
  while (threads > 1 && wide > kLeastWide && too_few()) wide = round_up(wide / 2, kGemmBf16Panel);
  const int64_t across = parts(p.columns, wide);
  const int64_t scratch = round_up(kernels.scratch_bytes(p, tall, wide), 64);
  char* const at = memory.of(size_t(panels * panel_units * 4 + scratch * threads));
  uint32_t* const b = reinterpret_cast<uint32_t*>(at);
  char* const own = at + panels * panel_units * 4;
  parallel_for(panels, threads, [&](int64_t n, int worker) {
    kernels.pack(p, n * kGemmBf16Panel, b + n * panel_units, own + worker * scratch);
  });
  parallel_for(parts(p.rows, tall) * across, threads, [&](int64_t item, int worker) {
    const int64_t r = item / across * tall, n = item % across * wide;
    kernels.multiply(p, {r, std::min(p.rows, r + tall)}, {n, std::min(p.columns, n + wide)}, b + n * p.depth / 2,
                     own + worker * scratch);
  });
}

}  // namespace tunecore
