// C[M, N] (+)= A[M, K] B[K, N] of bf16, summed in float32. May be included by per-ISA files.
//
// B is copied into panels of panel_columns columns first, all of it; A block by block, when it is multiplied. So both
// may lie either way, and what they lack of whole tiles is zero.
#pragma once
#include <stdint.h>

#include "../gemm/gemm.h"

namespace tunecore {

constexpr int64_t kGemmBf16Step = 32;  // the depth of a panel is a multiple of it

struct GemmBf16Params {
  GemmOperand<uint16_t> a_MK, b_KN;
  int64_t rows, columns, depth;  // M, N, K
  void* c_MN;
  int64_t c_stride;        // of its rows; columns are adjacent
  bool c_is_float;         // else bf16
  const uint16_t* bias_N;  // added to every row of the result; NULL: none
  bool add;                // to what C holds, of floats only
};

struct GemmBf16Kernels {
  int64_t panel_columns;
  int64_t item_rows, item_columns;  // of one work item at most; the columns are a multiple of panel_columns
  int64_t row_step;                 // rows of an item are a multiple of it
  bool reads_rows;                  // of A where they lie; else each item copies its own
  int64_t (*scratch_bytes)(int64_t rows, int64_t columns);  // of an item of so many, or a panel
  // One panel, of the columns from `first`: pairs along K, [ceil(K to kGemmBf16Step) / 2][panel_columns].
  void (*pack)(const GemmBf16Params& p, int64_t first, uint32_t* panel, char* scratch);
  // C of these rows and columns; `panels` begin with the columns.
  void (*multiply)(const GemmBf16Params& p, GemmRange rows, GemmRange columns, const uint32_t* panels,
                   char* scratch);
};

extern const GemmBf16Kernels gemm_bf16_kernels_avx512_bf16;
extern const GemmBf16Kernels gemm_bf16_kernels_amx_bf16;

}  // namespace tunecore
