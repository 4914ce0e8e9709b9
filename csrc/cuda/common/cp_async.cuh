// Copies from global to shared memory that run while the thread goes on.
#pragma once

#include "cuda/common/device.cuh"

#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/cp_async.h>
#else

namespace sbrrt::cuda {

// 16 bytes, both addresses aligned; zeros where not `valid`, and `global` is then not read.
__device__ inline void cp_async_16(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int size = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size)
               : "memory");
}

// Makes one group of the copies issued since the last commit.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most N of this thread's latest groups are under way. Other threads' copies need a barrier
// after it.
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace sbrrt::cuda
#endif
