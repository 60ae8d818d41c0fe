// The attention kernels with bf16 pairs multiplied in plain C++: the layouts of Bf16Unit, on any machine.
#define TUNECORE_ISA emulated
#include "../common/cpu/isa_default.h"
#include "../common/cpu/products.h"

namespace tunecore {
namespace {

using Isa = IsaDefault;

struct UnitOfBf16 {
  using Isa = IsaDefault;
  using F = IsaDefault::F;
  using U = IsaDefault::U;
  static constexpr int kPair = 2;

  static F bits(U x) {
    F out;
    memcpy(&out, &x, 16);
    return out;
  }
  static U bits(F x) {
    U out;
    memcpy(&out, &x, 16);
    return out;
  }
  static F broadcast(const char* a) {
    uint32_t x;
    memcpy(&x, a, 4);
    return bits(U{x, x, x, x});
  }
  static F load(const uint32_t* b) { return Isa::load(reinterpret_cast<const float*>(b)); }
  static void store(uint32_t* b, F units) { Isa::store(reinterpret_cast<float*>(b), units); }
  static F dot(F sum, F a, F b) {
    const U high = U{} + 0xFFFF0000u;
    sum = sum + bits(bits(a) & high) * bits(bits(b) & high);
    return sum + bits(bits(a) << 16) * bits(bits(b) << 16);
  }
  static F along(const uint16_t* row, int64_t first, int64_t) {
    F out;
    memcpy(&out, row + first, 16);
    return out;
  }
  static F across(const uint16_t* const* rows, int64_t first) {
    U out{};
    for (int i = 0; i < 4; ++i) out[i] = rows[0][first + i] | uint32_t(rows[1][first + i]) << 16;
    return bits(out);
  }
  static void put(char* row, int64_t first, F x) { Isa::store(reinterpret_cast<uint16_t*>(row) + first, x); }
  static void put_across(uint32_t* units, const F* rows) {
    uint16_t low[4], high[4];
    Isa::store(low, rows[0]);
    Isa::store(high, rows[1]);
    for (int i = 0; i < 4; ++i) units[i] = low[i] | uint32_t(high[i]) << 16;
  }
};

}  // namespace

extern const struct AttentionKernels attention_kernels_emulated;

}  // namespace tunecore

#include "../attention/attention_cpu.inc"
