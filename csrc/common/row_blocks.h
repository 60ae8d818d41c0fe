// Rows in fixed blocks over threads, and sums over rows that do not depend on the number of threads: each block has a
// partial sum of its own, and these are added in the order of the blocks. For baseline files only.
#pragma once
#include <algorithm>
#include <vector>

#include "parallel.h"

namespace tunecore {

constexpr int64_t kBlockRows = 32;

template <class Body>
void for_row_blocks(int64_t rows, int threads, const Body& body) {
  parallel_for((rows + kBlockRows - 1) / kBlockRows, threads, [&](int64_t block, int) {
    body(block * kBlockRows, std::min(rows, (block + 1) * kBlockRows));
  });
}

class RowSums {
 public:
  // `width` sums over `rows` rows; width 0 where none are wanted.
  RowSums(int64_t rows, int64_t width)
      : blocks_((rows + kBlockRows - 1) / kBlockRows), width_(width), parts_(size_t(blocks_ * width)) {}

  // The partial sums, all 0 at first, of the block that begins with row `first`; null where none are wanted.
  float* part(int64_t first) { return width_ ? parts_.data() + first / kBlockRows * width_ : nullptr; }

  // Write the sums to out [width].
  void add_up(float* out, int threads) const {
    constexpr int64_t kColumns = 256;
    parallel_for((width_ + kColumns - 1) / kColumns, threads, [&](int64_t tile, int) {
      const int64_t begin = tile * kColumns, end = std::min(width_, begin + kColumns);
      std::fill(out + begin, out + end, 0.0f);
      for (int64_t block = 0; block < blocks_; ++block)
        for (int64_t i = begin; i < end; ++i) out[i] += parts_[size_t(block * width_ + i)];
    });
  }

 private:
  int64_t blocks_, width_;
  std::vector<float> parts_;
};

}  // namespace tunecore
