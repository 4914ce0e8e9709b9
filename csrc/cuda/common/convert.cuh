// Between fp32, in which everything is computed, and the types that are stored.
#pragma once

#include <cstring>

#include "cuda/common/device.cuh"

namespace sbrrt::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ inline T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Two numbers in a register, `low` in the lower half: what mma takes.
template <typename T>
__device__ inline uint32_t pack2(float low, float high) {
  uint32_t word;
  if constexpr (__is_same(T, __half)) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  } else {
    static_assert(__is_same(T, __nv_bfloat16));
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, sizeof(word));
  }
  return word;
}

template <typename T>
__device__ inline float2 unpack2(uint32_t word) {
  T pair[2];
  memcpy(pair, &word, sizeof(word));
  return make_float2(to_float(pair[0]), to_float(pair[1]));
}

}  // namespace sbrrt::cuda
