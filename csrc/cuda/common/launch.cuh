// How every kernel is launched: launch<kernel<float, 64>>(grid, block, shared_bytes, stream, params).
// The kernel is a template argument, so that each one that ships can be listed and counted.
#pragma once

#include "cuda/common/device.cuh"

#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/launch.h>
#else

namespace sbrrt::cuda {

constexpr size_t kDefaultSharedBytes = 48 << 10;  // more has to be asked for

// A grid without blocks is no error: nothing is launched.
template <auto kernel, typename... Args>
inline cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace sbrrt::cuda
#endif
