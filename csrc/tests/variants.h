// Every variant this machine runs, one after the other.
#pragma once
#include "../common/cpu/capability.h"

namespace tunecore::tests {

template <class Body>
void for_each_variant(const Body& body) {
  for (Capability c : kCapabilities) {
    if (c > detected_capability()) continue;
    set_capability(name_of(c));
    body();
  }
  set_capability("");
}

}  // namespace tunecore::tests
