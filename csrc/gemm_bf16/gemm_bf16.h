// C[M, N] (+)= A[M, K] B[K, N] of bf16 in tile registers, summed in float32. May be included by per-ISA files.
//
// A is read where it lies. B is copied into panels of kGemmBf16Panel columns first, whole ones, over all of the depth;
// of rows it lacks, zeros.
#pragma once
#include <stdint.h>

#include "../gemm/gemm.h"

namespace tunecore {

constexpr int64_t kGemmBf16Panel = 32;
constexpr int64_t kGemmBf16Step = 32;  // the depth is a multiple of it

struct GemmBf16Params {
  const uint16_t* a_MK;
  int64_t a_stride;  // of its rows, in elements; columns are adjacent
  const uint16_t* b_KN;
  int64_t b_row_stride, b_column_stride;  // one of them is 1
  int64_t rows, columns, depth;           // M, N, K: a multiple of kGemmBf16Step
  int64_t b_rows;                         // of B that are there: all where b_row_stride is 1; A has numbers in all K
  void* c_MN;
  int64_t c_stride;        // of its rows; columns are adjacent
  bool c_is_float;         // else bf16
  const uint16_t* bias_N;  // added to every row of the result; NULL: none
  bool add;                // to what C holds, of floats only
};

struct GemmBf16Kernels {
  int64_t (*scratch_bytes)(const GemmBf16Params& p, int64_t rows, int64_t columns);
  // One panel, of the columns from `first`.
  void (*pack)(const GemmBf16Params& p, int64_t first, uint32_t* panel, char* scratch);
  // C of these rows and columns; `panels` begin with the columns.
  void (*multiply)(const GemmBf16Params& p, GemmRange rows, GemmRange columns, const uint32_t* panels,
                   char* scratch);
};

extern const GemmBf16Kernels gemm_bf16_kernels_amx_bf16;

}  // namespace tunecore
