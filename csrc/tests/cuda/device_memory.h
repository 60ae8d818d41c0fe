// The memory of a GPU as the tests need it: of the CUDA runtime in device_memory_cuda.cpp, of the host in
// device_memory_host.cpp, so that what stands on it is tested where there is no GPU.
#pragma once
#include <cstddef>
#include <string>

namespace tunecore::tests::device {

// These say what failed and end the process: after an error of the device nothing else runs on it.
void* allocate(size_t bytes);  // contents as they come; a pointer also for no bytes
void put(void* to, const void* from, size_t bytes);
void get(void* to, const void* from, size_t bytes);
void fill(void* to, unsigned char with, size_t bytes);

void release(void* memory);

// Waits for everything that was launched; the error of it, "" where there was none.
std::string wait();

// How many waits there were: what was read of the device before the last one may be old.
unsigned waits();

}  // namespace tunecore::tests::device
