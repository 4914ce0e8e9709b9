// What every kernel file includes: CUDA's runtime and number types, shared memory, thread indices.
// With SBRRT_CUDA_ON_CPU the names come from tests/cuda_on_cpu, which runs kernels on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// SBRRT_SHARED(float, tile, [16][33]); is one array per block. shared_memory<T>() is the dynamic part.
#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/shared.h>
#else
#define SBRRT_SHARED(type, name, size) __shared__ __align__(16) type name size

namespace sbrrt::cuda {
template <typename T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}
}  // namespace sbrrt::cuda
#endif

namespace sbrrt::cuda {

constexpr int kWarpSize = 32;
constexpr size_t kMaxSharedBytes = 163 << 10;  // of a block on sm_80; on sm_90 there is more
constexpr unsigned kFullMask = 0xffffffffu;

__device__ inline int lane_index() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_index() { return threadIdx.x / kWarpSize; }

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sbrrt::cuda
