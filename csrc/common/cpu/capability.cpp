#include "capability.h"

#include <atomic>
#include <cstdlib>

#include "../error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tunecore {
namespace {

constexpr int kUnset = -1;
std::atomic<int> in_use{kUnset};

// The message lists the choices of this machine; `what` says which value and where it came from.
Capability parse(const std::string& name, const std::string& what) {
  const Capability limit = detected_capability();
  std::string choices;
  for (Capability c : kCapabilities) {
    if (c > limit) continue;
    if (name == name_of(c)) return c;
    choices += (choices.empty() ? "" : ", ") + std::string(name_of(c));
  }
  for (Capability c : kCapabilities)
    require(name != name_of(c), what + " is not supported by this processor; choices here: " + choices);
  throw Error(what + " is unknown; choices here: " + choices);
}

// Whether the processor multiplies bf16 in tiles, and the system lets this process have them: Linux gives the 8 KiB of
// registers to those that ask (arch_prctl, since 5.16), once for all threads to come and those that are.
bool has_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // of leaf 7, edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const char* name_of(Capability c) {
  switch (c) {
    case Capability::baseline:
      return "default";
    case Capability::avx2:
      return "avx2";
    case Capability::avx512:
      return "avx512";
    case Capability::avx512_bf16:
      return "avx512_bf16";
    case Capability::amx_bf16:
      return "amx_bf16";
  }
  return "?";
}

Capability detected_capability() {
#if defined(__x86_64__) || defined(__i386__)
  // The builtins also ask whether the system saves the wide registers.
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return Capability::baseline;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")))
    return Capability::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Capability::avx512;
  static const bool tiles = has_amx_bf16();
  return tiles ? Capability::amx_bf16 : Capability::avx512_bf16;
#else
  return Capability::baseline;
#endif
}

Capability capability() {
  const int known = in_use.load(std::memory_order_relaxed);
  if (known != kUnset) return static_cast<Capability>(known);
  const char* asked = std::getenv("TUNECORE_CPU_CAPABILITY");
  set_capability(asked ? asked : "");
  return static_cast<Capability>(in_use.load(std::memory_order_relaxed));
}

void set_capability(const std::string& name) {
  const Capability chosen =
      name.empty() ? detected_capability() : parse(name, "TUNECORE_CPU_CAPABILITY='" + name + "'");
  in_use.store(static_cast<int>(chosen), std::memory_order_relaxed);
}

}  // namespace tunecore
