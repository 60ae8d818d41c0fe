// Vectors at the end of a row: fewer elements than lanes, the other lanes 0. Internal linkage: for per-ISA files.
#pragma once
#include <stdint.h>
#include <string.h>

namespace tunecore {
namespace {

template <class Isa, class S>
inline typename Isa::F load_part(const S* x, int64_t count) {
  if (count >= Isa::kLanes) return Isa::load(x);
  S lanes[Isa::kLanes] = {};
  memcpy(lanes, x, size_t(count) * sizeof(S));
  return Isa::load(lanes);
}

template <class Isa, class S>
inline void store_part(S* x, typename Isa::F value, int64_t count) {
  if (count >= Isa::kLanes) return Isa::store(x, value);
  S lanes[Isa::kLanes];
  Isa::store(lanes, value);
  memcpy(x, lanes, size_t(count) * sizeof(S));
}

}  // namespace
}  // namespace tunecore
