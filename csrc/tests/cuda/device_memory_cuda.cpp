// The memory of the current GPU, by the CUDA runtime.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "device_memory.h"

namespace tunecore::tests::device {

namespace {

unsigned count = 0;

void expect(cudaError_t error, const char* what, size_t bytes) {
  if (error == cudaSuccess) return;
  std::printf("%s of %zu bytes failed: %s\n", what, bytes, cudaGetErrorString(error));
  std::fflush(stdout);
  std::_Exit(1);  // destructors would only fail again
}

}  // namespace

void* allocate(size_t bytes) {
  void* memory = nullptr;
  expect(cudaMalloc(&memory, bytes ? bytes : 1), "cudaMalloc", bytes);
  return memory;
}

void put(void* to, const void* from, size_t bytes) {
  expect(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device", bytes);
}

void get(void* to, const void* from, size_t bytes) {
  expect(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device", bytes);
}

void fill(void* to, unsigned char with, size_t bytes) { expect(cudaMemset(to, with, bytes), "cudaMemset", bytes); }

void release(void* memory) { expect(cudaFree(memory), "cudaFree", 0); }

std::string wait() {
  ++count;
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

unsigned waits() { return count; }

}  // namespace tunecore::tests::device
