// __half on the host: stored as CUDA stores it, rounded to nearest even.
#pragma once

#include <cuda_runtime.h>

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half half) {
  const uint32_t sign = (half.bits & 0x8000u) << 16;
  const uint32_t exponent = half.bits >> 10 & 0x1f, fraction = half.bits & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return __uint_as_float(sign | wide << 23 | fraction << 13);
}

inline __half __float2half_rn(float x) {
  const uint32_t word = __float_as_uint(x);
  const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000);
  const float magnitude = fabsf(x);
  if (x != x) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the fraction
    const uint32_t fraction = __float_as_uint(magnitude + 0.5f) - __float_as_uint(0.5f);
    return {static_cast<uint16_t>(sign | fraction)};
  }
  const uint32_t positive = word & 0x7fffffffu;
  const uint32_t rounded = positive + 0xfff + (positive >> 13 & 1) - (112u << 23);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 pair) {
  return {__half2float(pair.x), __half2float(pair.y)};
}
