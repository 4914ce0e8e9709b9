// launch<kernel>(...): enters the kernel into the list of those built, and runs it.
#pragma once

#include <tuple>

namespace cuda_on_cpu {

struct Kernel {
  const char* name;  // of launch<kernel>, from which the harness cuts out the kernel's
  uint64_t num_launches = 0;
  // Of a block, the most that a launch asked for.
  uint64_t num_threads = 0, shared_bytes = 0;
  Kernel* next;

  explicit Kernel(const char* name);
};

}  // namespace cuda_on_cpu

namespace sbrrt::cuda {

template <auto kernel>
struct Launched {
  static const char* name() { return __PRETTY_FUNCTION__; }
  static inline ::cuda_on_cpu::Kernel entry{name()};
};

// What only passes the arguments on is not the kernel's: its accesses are not checked.
#define CUDA_ON_CPU_UNCHECKED __attribute__((no_sanitize("thread")))

template <auto kernel, typename... Args>
inline cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                          const Args&... args) {
  auto body = [&]() CUDA_ON_CPU_UNCHECKED { kernel(args...); };
  const auto enter = [](void* it) CUDA_ON_CPU_UNCHECKED { (*static_cast<decltype(body)*>(it))(); };
  return ::cuda_on_cpu::run_grid(Launched<kernel>::entry, grid, block, shared_bytes, enter, &body);
}

}  // namespace sbrrt::cuda
