// The polynomial behind exp2 of every trait. Internal linkage: for per-ISA files.
#pragma once

namespace tunecore {
namespace {

// 2^f on [-1/2, 1/2] to 2e-7 relative: the coefficients of Cephes' exp2f.
template <class Isa>
inline typename Isa::F exp2_fraction(typename Isa::F f) {
  typename Isa::F p = Isa::set(1.535336188e-4f);
  p = Isa::fma(p, f, Isa::set(1.339887440e-3f));
  p = Isa::fma(p, f, Isa::set(9.618437357e-3f));
  p = Isa::fma(p, f, Isa::set(5.550332471e-2f));
  p = Isa::fma(p, f, Isa::set(2.402264791e-1f));
  p = Isa::fma(p, f, Isa::set(6.931472029e-1f));
  return Isa::fma(p, f, Isa::set(1.0f));
}

}  // namespace
}  // namespace tunecore
