// cp.async: nothing arrives before the wait; until then the target holds NaN.
#pragma once

namespace cuda_on_cpu {

void cp_async(void* shared, const void* global, bool valid);
void cp_async_commit();
void cp_async_wait(int num_under_way);

}  // namespace cuda_on_cpu

namespace sbrrt::cuda {

inline void cp_async_16(void* shared, const void* global, bool valid) {
  ::cuda_on_cpu::cp_async(shared, global, valid);
}
inline void cp_async_commit() { ::cuda_on_cpu::cp_async_commit(); }

template <int N>
inline void cp_async_wait() {
  ::cuda_on_cpu::cp_async_wait(N);
}

}  // namespace sbrrt::cuda
