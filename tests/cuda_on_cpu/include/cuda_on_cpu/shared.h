// Shared memory: filled with NaN when a block starts, with gaps between the arrays.
#pragma once

namespace cuda_on_cpu {

void* dynamic_shared();
// `key` names the array; the first thread that comes makes it.
void* static_shared(const void* key, size_t bytes);

}  // namespace cuda_on_cpu

#define SBRRT_SHARED(type, name, size)                  \
  typedef type name##_array size;                       \
  static const char name##_key = 0;                     \
  name##_array& name = *static_cast<name##_array*>(     \
      ::cuda_on_cpu::static_shared(&name##_key, sizeof(name##_array)))

namespace sbrrt::cuda {

template <typename T>
inline T* shared_memory() {
  return static_cast<T*>(::cuda_on_cpu::dynamic_shared());
}

}  // namespace sbrrt::cuda
