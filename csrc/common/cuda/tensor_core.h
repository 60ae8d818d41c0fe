// mma.sync, ldmatrix and cp.async: inline PTX under nvcc, the fragment layouts of the PTX ISA manual under the emulation.
//
// Of lane L, g = L / 4 and t = L % 4. A register holds two elements, the lower index in its low half.
//   A (16 x 16): a[0] row g, columns 2t, 2t+1; a[1] row g + 8; a[2] row g, columns 2t+8, 2t+9; a[3] row g + 8 of these
//   B (16 x 8):  b[0] rows 2t, 2t+1 of column g; b[1] rows 2t+8, 2t+9
//   D (16 x 8):  d[0], d[1] row g, columns 2t, 2t+1; d[2], d[3] row g + 8
#pragma once
#include "numbers.h"

#ifndef __CUDACC__
#include "../../emulation/fragments.h"
#endif

namespace tunecore::cuda {

#ifdef __CUDACC__

// d += a b over one tile of 16 x 8 x 16; T is bf16 or f16, sums are float.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define TUNECORE_MMA(type)                                                                                      \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                           \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                           \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TUNECORE_MMA("bf16");
}

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  TUNECORE_MMA("f16");
}
#undef TUNECORE_MMA

template <class T>
__device__ __forceinline__ uint32_t shared_address(T* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

// N tiles of 8 x 8 elements of two bytes. Lanes 8i .. 8i+7 give the addresses of the rows of tile i, multiples of 16
// bytes; register i of lane L gets elements 2t, 2t+1 of row g of tile i, transposed of column g.
template <bool kTransposed, class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[1], T* row) {
  if (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}

template <bool kTransposed, class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], T* row) {
  if (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

template <bool kTransposed, class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], T* row) {
  if (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// Start to copy 16 bytes from global to shared memory; without `valid` the target is set to zero, nothing is read.
template <class T, class U>
__device__ __forceinline__ void cp_async_16(T* to, U* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Close the group of the copies started since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most kLeft groups of this thread are under way; other threads see them after a barrier.
template <int kLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(kLeft) : "memory");
}

#else

template <class T>
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TC_EMULATION_SITE) {
  emulation::mma({"mma", file, line}, d, a, b, [](uint16_t bits) { return to_float(T{bits}); });
}

template <bool kTransposed, int N, class T>
inline void ldmatrix(uint32_t (&r)[N], Shared<T> row, TC_EMULATION_SITE) {
  emulation::ldmatrix({"ldmatrix", file, line}, r, N, kTransposed, row.region, row.at);
}

template <class T, class U>
inline void cp_async_16(Shared<T> to, Global<U> from, bool valid = true) {
  emulation::async_copy(to.region, to.at, from.region, from.at, valid);
}

inline void cp_async_commit() { emulation::async_commit(); }

template <int kLeft>
inline void cp_async_wait() {
  emulation::async_wait(kLeft);
}

#endif

}  // namespace tunecore::cuda
