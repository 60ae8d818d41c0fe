// What a C entry of the library is made of: the device set and restored around the launches, errors as text.
#pragma once
#include "device.h"

// A function that a program finds by name. Null where all went well, else what went wrong (static text).
#define TUNECORE_CUDA_ENTRY extern "C" __attribute__((visibility("default"))) const char*

namespace tunecore::cuda {

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

#ifdef __CUDACC__

// Run `body`, which launches kernels, with `device` as the current one; the errors of its launches.
template <class Body>
const char* on_device(int device, const Body& body) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  body();
  error = cudaGetLastError();
  if (before != device) {
    const cudaError_t restored = cudaSetDevice(before);
    error = error == cudaSuccess ? restored : error;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#else

template <class Body>
const char* on_device(int, const Body& body) {
  static std::string message;
  try {
    body();
  } catch (const emulation::Failure& failure) {
    message = failure.what();
    return message.c_str();
  }
  return nullptr;
}

#endif

inline unsigned ceil_div(int64_t a, int64_t b) { return unsigned((a + b - 1) / b); }

}  // namespace tunecore::cuda
