#include "capability.h"

#include <atomic>
#include <cstdlib>

#include "../error.h"

namespace tunecore {
namespace {

constexpr Capability kAll[] = {Capability::baseline, Capability::avx2, Capability::avx512, Capability::avx512_bf16};
constexpr int kUnset = -1;
std::atomic<int> in_use{kUnset};

// The message lists the choices of this machine; `what` says which value and where it came from.
Capability parse(const std::string& name, const std::string& what) {
  const Capability limit = detected_capability();
  std::string choices;
  for (Capability c : kAll) {
    if (c > limit) continue;
    if (name == name_of(c)) return c;
    choices += (choices.empty() ? "" : ", ") + std::string(name_of(c));
  }
  for (Capability c : kAll)
    require(name != name_of(c), what + " is not supported by this processor; choices here: " + choices);
  throw Error(what + " is unknown; choices here: " + choices);
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
  return __builtin_cpu_supports("avx512bf16") ? Capability::avx512_bf16 : Capability::avx512;
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
