// What every kernel file includes: CUDA's runtime and number types, shared memory, thread indices,
// and what every kernel begins with.
// With SBRRT_CUDA_ON_CPU the names come from tests/cuda_on_cpu, which runs kernels on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// SBRRT_SHARED(float, tile, [16][33]); is one array per block. shared_memory<T>() is the dynamic part.
#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/previous_kernel.h>
#include <cuda_on_cpu/shared.h>
#else
#define SBRRT_SHARED(type, name, size) __shared__ __align__(16) type name size

namespace sbrrt::cuda {
template <typename T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// The first statement of every kernel. From compute capability 9.0 on a kernel is started while the
// one before it in the stream still runs (launch.cuh), and may touch global memory from here on: all
// of that one is done and visible. The next kernel may be started as soon as all blocks are here; it
// waits in turn. Kernels for older chips start when the one before has ended.
__device__ inline void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
}  // namespace sbrrt::cuda
#endif

namespace sbrrt::cuda {

constexpr int kWarpSize = 32;

// Of a block, by __CUDA_ARCH__ (CUDA C++ Programming Guide, table of technical specifications per
// compute capability); 0 for a chip that is not known.
constexpr size_t shared_bytes_of_chip(int arch) {
  switch (arch) {
    case 800: case 870: return 163 << 10;
    case 860: case 890: case 1200: case 1210: return 99 << 10;
    case 900: case 1000: case 1030: case 1100: return 227 << 10;
    default: return 0;
  }
}

// What a block may take. It is the least of the chips above, so that the choice of kernels, and with
// it every bit of a result, is the same on all of them.
constexpr size_t kMaxSharedBytes = 99 << 10;
#if defined(__CUDA_ARCH__)
static_assert(__CUDA_ARCH__ >= 800, "cp.async and mma.m16n8k16 need compute capability 8.0");
static_assert(shared_bytes_of_chip(__CUDA_ARCH__) == 0 ||
                  shared_bytes_of_chip(__CUDA_ARCH__) >= kMaxSharedBytes,
              "blocks are larger than this chip's shared memory");
#endif

constexpr unsigned kFullMask = 0xffffffffu;

__device__ inline int lane_index() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_index() { return threadIdx.x / kWarpSize; }

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sbrrt::cuda
