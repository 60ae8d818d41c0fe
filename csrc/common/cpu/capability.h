// Which of the kernel variants in this build the processor can run, and the choice among them.
//
// setup.py defines TUNECORE_HAS_<OP>_<ISA> for every csrc/<op>/<op>_cpu_<isa>.cpp it compiled. An op lists its
// variants once, best last, and picks:
//
//   const Kernels& k = best<Kernels>({{Capability::baseline, &kernels_default},
//   #ifdef TUNECORE_HAS_ATTENTION_AVX2
//                                     {Capability::avx2, &kernels_avx2},
//   #endif
//                                    });
#pragma once
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace tunecore {

enum class Capability { baseline, avx2, avx512, avx512_bf16, amx_bf16 };  // each includes those before it
constexpr Capability kCapabilities[] = {Capability::baseline, Capability::avx2, Capability::avx512,
                                        Capability::avx512_bf16, Capability::amx_bf16};

const char* name_of(Capability capability);
Capability detected_capability();  // what processor and system support

// The capability in use: detected, or TUNECORE_CPU_CAPABILITY where set. An unknown or unsupported value is an Error.
Capability capability();
void set_capability(const std::string& name);  // "" goes back to the detected one; the same checks

template <class Kernels>
const Kernels& best(std::initializer_list<std::pair<Capability, const Kernels*>> variants) {
  const Kernels* chosen = variants.begin()->second;
  for (const auto& [isa, kernels] : variants)
    if (isa <= capability()) chosen = kernels;
  return *chosen;
}

}  // namespace tunecore
