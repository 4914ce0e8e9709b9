// How a test's C++ function becomes callable from Python, its argument types checked:
//   cudaError_t gelu_forward(const float* x, float* y, int64_t n, double scale) {...}
//   CUDA_ON_CPU_EXPORT(gelu_forward)
// Arguments are pointers, int64_t and double.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace cuda_on_cpu {

template <typename T>
constexpr char letter_of() {
  static_assert(__is_same(T, int64_t) || __is_same(T, double) || std::is_pointer_v<T>);
  if (__is_same(T, int64_t)) return 'i';
  if (__is_same(T, double)) return 'd';
  return std::is_const_v<std::remove_pointer_t<T>> ? 'c' : 'p';
}

template <typename... Args>
std::string letters(cudaError_t (*)(Args...)) {
  return {letter_of<Args>()...};
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_EXPORT(function)                                                        \
  extern "C" const char* function##_letters() {                                             \
    static const std::string letters = ::cuda_on_cpu::letters(&function);                   \
    return letters.c_str();                                                                 \
  }                                                                                         \
  extern "C" void* function##_address() { return reinterpret_cast<void*>(&function); }
