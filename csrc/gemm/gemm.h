// C[M, N] (+)= A[M, K] B[K, N] in float32: parameters and the table of kernels. May be included by per-ISA files.
//
// Both operands are copied into panels first (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
// Multiplication"), so that the innermost loop reads memory in order whatever their layout: A in panels of panel_rows
// rows, B in panels of panel_columns columns, each [K][width of the panel], missing rows and columns zero.
#pragma once
#include <stdint.h>

namespace tunecore {

template <class T>
struct GemmOperand {
  const T* data;
  int64_t row_stride, column_stride;  // in elements; one of them is 1
};

struct GemmParams {
  GemmOperand<float> a_MK, b_KN;
  int64_t rows, columns, depth;  // M, N, K
  float* c_MN;
  int64_t c_stride;      // of its rows; columns are adjacent
  const float* bias_N;   // added to every row of the result; NULL: none
  bool add;              // to what C holds
};

// Some of the rows, columns and depth of a product.
struct GemmRange {
  int64_t begin, end;
};

struct GemmKernels {
  int64_t panel_rows, panel_columns;
  // Panels of rows [rows.begin, rows.end) and of the depth given; begin is a multiple of panel_rows.
  void (*pack_rows)(const GemmParams& p, GemmRange rows, GemmRange depth, float* panels);
  void (*pack_columns)(const GemmParams& p, GemmRange columns, GemmRange depth, float* panels);
  // C of these rows and columns, of panels that begin with them, over `depth`. `fresh` overwrites C with the first part
  // of the sum (and the bias).
  void (*multiply)(const GemmParams& p, GemmRange rows, GemmRange columns, int64_t depth, const float* a,
                   const float* b, bool fresh);
};

extern const GemmKernels gemm_kernels_default;
extern const GemmKernels gemm_kernels_avx2;
extern const GemmKernels gemm_kernels_avx512;

}  // namespace tunecore
