// Loads and stores of a dtype that is known only at run time: for ops that move little.
#pragma once

#include "cuda/common/params.h"
#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {

template <int N>
__device__ inline void load_any(const void* data, Dtype dtype, int64_t index, float (&to)[N]) {
  switch (dtype) {
    case Dtype::kFloat32: return load_floats(static_cast<const float*>(data) + index, to);
    case Dtype::kFloat16: return load_floats(static_cast<const __half*>(data) + index, to);
    case Dtype::kBFloat16: return load_floats(static_cast<const __nv_bfloat16*>(data) + index, to);
  }
}

template <int N>
__device__ inline void store_any(void* data, Dtype dtype, int64_t index, const float (&from)[N]) {
  switch (dtype) {
    case Dtype::kFloat32: return store_floats(static_cast<float*>(data) + index, from);
    case Dtype::kFloat16: return store_floats(static_cast<__half*>(data) + index, from);
    case Dtype::kBFloat16: return store_floats(static_cast<__nv_bfloat16*>(data) + index, from);
  }
}

__device__ inline float load_any(const void* data, Dtype dtype, int64_t index) {
  float x[1];
  load_any(data, dtype, index, x);
  return x[0];
}

__device__ inline void store_any(void* data, Dtype dtype, int64_t index, float value) {
  const float x[1] = {value};
  store_any(data, dtype, index, x);
}

// In double, over a warp; every lane gets the result.
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kFullMask, x, offset);
  }
  return x;
}

}  // namespace sbrrt::cuda
