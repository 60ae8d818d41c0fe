// Which elements dropout keeps, drawn one after another from the words of philox.h.
#pragma once
#include "../common/philox.h"
#include "../dropout/dropout.h"

namespace tunecore::tests {

// `Params` has rng_key, site and drop_below, as DropoutParams and ResidualNormParams do.
template <class Params>
bool kept(const Params& p, int64_t n) {
  const Philox4 r = philox4x32_10(philox_site_key(p.rng_key, p.site), uint32_t(p.rng_key >> 32), uint32_t(n >> 3),
                                  uint32_t(n >> 35), kDropoutDomain, 0);
  return !p.drop_below || (r.w[n % 8 / 2] >> (16 * (n % 2)) & 0xFFFF) >= p.drop_below;
}

}  // namespace tunecore::tests
