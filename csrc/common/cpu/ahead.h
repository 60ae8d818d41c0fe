// Rows that are soon to be read or written, asked for a few at a time in between computing.
//
// Rows of one head lie far apart, which no processor foresees, and one that asks for many at once waits: it has few
// misses in flight. Spread over the tiles of products.h the same misses cost nothing. Internal linkage: for per-ISA files.
#pragma once
#include <stdint.h>

namespace tunecore {
namespace {

class Ahead {
 public:
  void clear() { count_ = at_ = 0, row_ = 0; }
  // `rows` rows of `bytes`, `stride` bytes apart, after those added before; at most kRuns times.
  void add(const void* first, int64_t stride, int64_t rows, int64_t bytes) {
    if (rows > 0) runs_[count_++] = {static_cast<const char*>(first), stride, rows < kRows ? rows : kRows, bytes};
  }
  // A tile is about to be computed.
  void step() {
    for (int n = 0; n < kRowsOfATile && at_ < count_; ++n) {
      const Run& run = runs_[at_];
      const char* const row = run.first + row_ * run.stride;
      for (int64_t byte = 0; byte < run.bytes; byte += kLine) __builtin_prefetch(row + byte, 0, kIntoL2);
      if (++row_ == run.rows) ++at_, row_ = 0;
    }
  }
  static constexpr int kRuns = 8;

 private:
  // A head of 128 queries and keys has 64 tiles in the forward pass, 224 in the backward pass, for 512 and 1,024 rows.
  // Of a long run, whose misses are few beside its products, the end would be pushed out again before its use.
  static constexpr int kRowsOfATile = 8, kLine = 64, kIntoL2 = 2;
  static constexpr int64_t kRows = 512;

  struct Run {
    const char* first;
    int64_t stride, rows, bytes;
  };
  Run runs_[kRuns];
  int count_, at_;
  int64_t row_;
};

}  // namespace
}  // namespace tunecore
