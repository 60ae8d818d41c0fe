// Transposed copies of bf16 matrices: parameters and the table of kernels. May be included by per-ISA files.
#pragma once
#include <stdint.h>

namespace tunecore {

struct TransposeParams {
  const uint16_t* x_RC;
  uint16_t* out_CP;
  int64_t rows, columns, x_stride, padded;  // R, C, elements from row to row of x, P
};

struct TransposeKernels {
  // Rows [first, last) of out: columns of x.
  void (*rows_of_out)(const TransposeParams& params, int64_t first, int64_t last);
};

extern const TransposeKernels transpose_kernels_default;
extern const TransposeKernels transpose_kernels_avx512;

}  // namespace tunecore
