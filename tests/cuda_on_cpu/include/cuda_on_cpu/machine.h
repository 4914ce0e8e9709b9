// CUDA's execution model on the CPU. A block's threads are fibers on one host thread; blocks run one
// after the other. A fiber runs until it has to wait (barrier, warp operation), then another one
// that can go on is drawn by the seed. The first error ends the launch and is kept with its block
// and thread.
#pragma once

#include <string>

namespace cuda_on_cpu {

struct Kernel;

// Where a kernel calls: threads that meet must come from the same place.
struct Site {
  const char* file;
  int line;
};
#define CUDA_ON_CPU_HERE \
  ::cuda_on_cpu::Site { __builtin_FILE(), __builtin_LINE() }

uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();

void syncthreads(Site site);

// Ends the launch with this message. Called by a fiber.
[[noreturn]] void fail(const std::string& message);

cudaError_t run_grid(Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes,
                     void (*body)(void*), void* context);

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_dim())
#define gridDim (::cuda_on_cpu::grid_dim())

inline void __syncthreads(cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  cuda_on_cpu::syncthreads(site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
