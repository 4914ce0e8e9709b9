// Atomics on whole numbers. Those on floats are missing on purpose: their order would show.
#pragma once

namespace cuda_on_cpu {

void check_atomic(const void* address, size_t bytes);

template <typename T, typename Update>
__attribute__((no_sanitize("thread"))) inline T atomic(T* address, Update update) {
  static_assert(std::is_integral_v<T>, "a sum of floats by atomics depends on their order");
  check_atomic(address, sizeof(T));
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace cuda_on_cpu

template <typename T>
inline T atomicAdd(T* address, T value) {
  return cuda_on_cpu::atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
inline T atomicMax(T* address, T value) {
  return cuda_on_cpu::atomic(address, [=](T old) { return old > value ? old : value; });
}
template <typename T>
inline T atomicOr(T* address, T value) {
  return cuda_on_cpu::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
inline T atomicExch(T* address, T value) {
  return cuda_on_cpu::atomic(address, [=](T) { return value; });
}
