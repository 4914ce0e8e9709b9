// N numbers that cross between memory and registers at once, 16 bytes where N * sizeof(T) is 16.
#pragma once

#include "cuda/common/convert.cuh"

namespace sbrrt::cuda {

// As many numbers as 16 bytes hold.
template <typename T>
constexpr int kVecSize = 16 / sizeof(T);

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vec {
  T at[N];

  __device__ T& operator[](int i) { return at[i]; }
  __device__ const T& operator[](int i) const { return at[i]; }
};

#if defined(SBRRT_CUDA_ON_CPU)
}  // namespace sbrrt::cuda
#include <cuda_on_cpu/vec.h>
namespace sbrrt::cuda {
#else
namespace detail {

// The unsigned word of that many bytes: one instruction moves it.
template <int BYTES>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <int BYTES>
__device__ inline void copy(void* to, const void* from) {
  constexpr int kStep = BYTES < 16 ? BYTES : 16;
  using W = typename Word<kStep>::type;
#pragma unroll
  for (int i = 0; i < BYTES / kStep; ++i) {
    static_cast<W*>(to)[i] = static_cast<const W*>(from)[i];
  }
}

}  // namespace detail
#endif

// `from` and `to` must be aligned as Vec<T, N> is; global or shared memory.
template <int N, typename T>
__device__ inline Vec<T, N> load(const T* from) {
  Vec<T, N> vec;
  detail::copy<N * sizeof(T)>(&vec, from);
  return vec;
}

template <int N, typename T>
__device__ inline void store(T* to, const Vec<T, N>& vec) {
  detail::copy<N * sizeof(T)>(to, &vec);
}

}  // namespace sbrrt::cuda
