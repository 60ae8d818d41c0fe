// Pointers to global and shared memory, and the only ways a kernel reads and writes through them: plain loads and stores
// under nvcc, checked ones under the emulation.
#pragma once
#include <type_traits>

#include "device.h"

namespace tunecore::cuda {

// N adjacent elements moved at once; the address is a multiple of their size, or of 16 bytes where that is less.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T v[N];
};

#ifdef __CUDACC__

template <class T>
using Global = T*;
template <class T>
using Shared = T*;

// An untyped pointer of the parameters as one to T.
template <class T>
__device__ __forceinline__ Global<T> global(const void* p) {
  return static_cast<T*>(const_cast<void*>(p));
}

template <class T>
__device__ __forceinline__ Shared<T> shared_memory() {
  extern __shared__ __align__(128) unsigned char tunecore_shared_memory[];
  return reinterpret_cast<T*>(tunecore_shared_memory);
}

template <class U, class T>
__device__ __forceinline__ U* pointer_cast(T* p) {
  return reinterpret_cast<U*>(p);
}

template <class T>
__device__ __forceinline__ std::remove_const_t<T> load(T* p, int64_t i = 0) {
  return p[i];
}

template <class T>
__device__ __forceinline__ void store(T* p, int64_t i, T value) {
  p[i] = value;
}

template <int N, class T>
__device__ __forceinline__ Pack<std::remove_const_t<T>, N> load_pack(T* p, int64_t i) {
  return *reinterpret_cast<const Pack<std::remove_const_t<T>, N>*>(p + i);
}

template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, int64_t i, const Pack<T, N>& value) {
  *reinterpret_cast<Pack<T, N>*>(p + i) = value;
}

template <class T>
__device__ __forceinline__ T atomic_add(T* p, int64_t i, T value) {
  return atomicAdd(p + i, value);
}

// Elements from p on until a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ int elements_to_alignment(T* p) {
  return int((16 - reinterpret_cast<uintptr_t>(p) % 16) % 16 / sizeof(T));
}

#else

template <class T>
using Global = emulation::Pointer<T>;
template <class T>
using Shared = emulation::Pointer<T>;

template <class T>
inline Global<T> global(const void* p) {
  return {static_cast<T*>(const_cast<void*>(p)), emulation::region_of(p)};
}

template <class T>
inline Shared<T> shared_memory() {
  emulation::Region* const region = emulation::shared_region();
  return {reinterpret_cast<T*>(region->begin), region};
}

template <class U, class T>
inline emulation::Pointer<U> pointer_cast(emulation::Pointer<T> p) {
  return {reinterpret_cast<U*>(p.at), p.region};
}

template <class T>
inline std::remove_const_t<T> load(emulation::Pointer<T> p, int64_t i = 0) {
  emulation::touch(p.region, p.at + i, sizeof(T), emulation::Touch::read);
  return p.at[i];
}

template <class T>
inline void store(emulation::Pointer<T> p, int64_t i, T value) {
  emulation::touch(p.region, p.at + i, sizeof(T), emulation::Touch::write);
  p.at[i] = value;
}

template <int N, class T>
inline Pack<std::remove_const_t<T>, N> load_pack(emulation::Pointer<T> p, int64_t i) {
  Pack<std::remove_const_t<T>, N> value;
  for (size_t at = 0; at < sizeof value; at += alignof(decltype(value)))
    emulation::touch(p.region, reinterpret_cast<const char*>(p.at + i) + at, alignof(decltype(value)),
                     emulation::Touch::read);
  memcpy(&value, p.at + i, sizeof value);
  return value;
}

template <class T, int N>
inline void store_pack(emulation::Pointer<T> p, int64_t i, const Pack<T, N>& value) {
  for (size_t at = 0; at < sizeof value; at += alignof(Pack<T, N>))
    emulation::touch(p.region, reinterpret_cast<char*>(p.at + i) + at, alignof(Pack<T, N>), emulation::Touch::write);
  memcpy(p.at + i, &value, sizeof value);
}

template <class T>
inline T atomic_add(emulation::Pointer<T> p, int64_t i, T value) {
  emulation::touch(p.region, p.at + i, sizeof(T), emulation::Touch::atomic);
  const T before = p.at[i];
  p.at[i] = before + value;
  return before;
}

template <class T>
inline int elements_to_alignment(emulation::Pointer<T> p) {
  return int((16 - reinterpret_cast<uintptr_t>(p.at) % 16) % 16 / sizeof(T));
}

#endif

}  // namespace tunecore::cuda

// The block's dynamic shared memory as elements of `type`.
#define TC_SMEM(type, name) const ::tunecore::cuda::Shared<type> name = ::tunecore::cuda::shared_memory<type>()
