// Sums and maxima over a warp or a block, in an order that does not depend on timing.
#pragma once

#include "cuda/common/device.cuh"

namespace sbrrt::cuda {

// Over groups of WIDTH neighbouring lanes; every lane gets the result. All 32 lanes must call it.
template <int WIDTH = kWarpSize>
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kFullMask, x, offset);
  }
  return x;
}

template <int WIDTH = kWarpSize>
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kFullMask, x, offset));
  }
  return x;
}

// Over the block's WARPS warps; every thread gets the result. `shared` has WARPS floats and may be
// used again at once. All threads must call it.
template <int WARPS>
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if constexpr (WARPS > 1) {
    if (lane_index() == 0) shared[warp_index()] = x;
    __syncthreads();
    x = shared[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) x += shared[warp];
    __syncthreads();
  }
  return x;
}

// store(j, sum) for each column j < width of `shared` [ROWS][stride], which the block's threads wrote;
// rows are added in their order. `shared` may be used again at once. All threads must call it.
template <int ROWS, typename F>
__device__ inline void for_each_column_sum(const float* shared, int stride, int width, F store) {
  __syncthreads();
  for (int j = threadIdx.x; j < width; j += blockDim.x) {
    float sum = shared[j];
#pragma unroll
    for (int row = 1; row < ROWS; ++row) sum += shared[row * stride + j];
    store(j, sum);
  }
  __syncthreads();
}

template <int WARPS>
__device__ inline float block_max(float x, float* shared) {
  x = warp_max(x);
  if constexpr (WARPS > 1) {
    if (lane_index() == 0) shared[warp_index()] = x;
    __syncthreads();
    x = shared[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) x = fmaxf(x, shared[warp]);
    __syncthreads();
  }
  return x;
}

}  // namespace sbrrt::cuda
