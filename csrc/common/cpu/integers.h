// Arithmetic of sizes that kernels and drivers cut work by. Internal linkage: also for per-ISA files.
#pragma once
#include <stdint.h>

namespace tunecore {
namespace {

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
inline int64_t round_down(int64_t x, int64_t to) { return x / to * to; }
inline int64_t round_up(int64_t x, int64_t to) { return parts(x, to) * to; }

}  // namespace
}  // namespace tunecore
