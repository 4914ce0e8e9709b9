// LayerNorm of a row in registers, and its derivative, which is its own adjoint
// (docs/math/layernorm.md).
#pragma once

#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {

struct RowStatistics {
  float mean, rstd;

  __device__ float standard(float s) const { return (s - mean) * rstd; }
};

// From centred values, so that a mean that is large against the deviation costs no digits. `shared`
// has kWarps floats.
template <typename Shape>
__device__ inline RowStatistics row_statistics(const RowValues<Shape>& s, int width, float eps,
                                               float* shared) {
  float sum = 0.0f, squares = 0.0f;
  for_each_chunk<Shape>(width, [&](int c, int) {
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) sum += s.at[c][i];
  });
  const float mean = block_sum<Shape::kWarps>(sum, shared) / width;
  for_each_chunk<Shape>(width, [&](int c, int) {
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      const float centred = s.at[c][i] - mean;
      squares = fmaf(centred, centred, squares);
    }
  });
  const float variance = block_sum<Shape::kWarps>(squares, shared) / width;
  return {mean, 1.0f / sqrtf(variance + eps)};
}

// rstd (g - mean(g) - z mean(g z)) for a row g with standard row z. A product g is rounded as in its
// mean: where rows are constant, rstd is huge and g - mean(g) is nothing.
struct Projection {
  float mean, mean_product, rstd;

  __device__ Projection(float2 sums, int width, float rstd_)
      : mean(sums.x / width), mean_product(sums.y / width), rstd(rstd_) {}

  __device__ float operator()(float g, float z) const {
    return rstd * (g - mean - z * mean_product);
  }
};

}  // namespace sbrrt::cuda
