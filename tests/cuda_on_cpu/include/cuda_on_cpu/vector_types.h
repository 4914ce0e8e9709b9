// float4 and its like, aligned as CUDA aligns them.
#pragma once

#define CUDA_ON_CPU_VECTORS(type, name)                                                   \
  struct alignas(2 * sizeof(type)) name##2 {                                              \
    type x, y;                                                                            \
  };                                                                                      \
  struct name##3 {                                                                        \
    type x, y, z;                                                                         \
  };                                                                                      \
  struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 {                 \
    type x, y, z, w;                                                                      \
  };                                                                                      \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                     \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }          \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(double, double)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(unsigned, uint)
CUDA_ON_CPU_VECTORS(short, short)
CUDA_ON_CPU_VECTORS(unsigned short, ushort)
CUDA_ON_CPU_VECTORS(long long, longlong)

#undef CUDA_ON_CPU_VECTORS
