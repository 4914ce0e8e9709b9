// How every kernel is launched: launch<kernel<float, 64>>(grid, block, shared_bytes, stream, params).
// The kernel is a template argument, so that each one that ships can be listed and counted.
#pragma once

#include "cuda/common/device.cuh"

#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/launch.h>
#else

#include <atomic>

namespace sbrrt::cuda {

constexpr size_t kDefaultSharedBytes = 48 << 10;  // more has to be asked for
constexpr int kMaxDevices = 64;                   // that are remembered

// Allows a kernel all the shared memory that blocks may take, once per device.
template <auto kernel>
inline cudaError_t allow_shared_bytes() {
  static std::atomic<bool> is_allowed[kMaxDevices];
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const bool is_remembered = device < kMaxDevices;
  if (is_remembered && is_allowed[device].load(std::memory_order_relaxed)) return cudaSuccess;
  const cudaError_t refusal = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMaxSharedBytes));
  if (is_remembered && refusal == cudaSuccess) is_allowed[device].store(true);
  return refusal;
}

// A grid without blocks is no error: nothing is launched.
template <auto kernel, typename... Args>
inline cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = allow_shared_bytes<kernel>();
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace sbrrt::cuda
#endif
