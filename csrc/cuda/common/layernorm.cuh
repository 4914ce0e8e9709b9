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

// Over a block's rows: the gradients of LayerNorm's parameters.
template <typename Shape>
struct ParameterSums {
  RowValues<Shape> weight{}, shift{};
};

// The backward of one row. load(chunk, column, s, dy) reads elements of s and of the gradient of y,
// store(chunk, column, ds) takes the gradient of s. Adds to the sums. `shared` has 2 * kWarps floats.
template <typename Shape, typename Load, typename Store>
__device__ inline void backward_row(const RowStatistics& statistics, const float* weights, int width,
                                    ParameterSums<Shape>& sums, float* shared, Load load,
                                    Store store) {
  RowValues<Shape> z, g;
  float sum = 0.0f, product_sum = 0.0f;
  for_each_chunk<Shape>(width, [&](int c, int j) {
    float weight[Shape::kVec];
    load(c, j, z.at[c], g.at[c]);
    load_floats(weights + j, weight);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      const float dy = g.at[c][i], standard = statistics.standard(z.at[c][i]);
      sums.weight.at[c][i] = fmaf(dy, standard, sums.weight.at[c][i]);
      sums.shift.at[c][i] += dy;
      z.at[c][i] = standard;
      g.at[c][i] = __fmul_rn(dy, weight[i]);
      sum += g.at[c][i];
      product_sum = fmaf(g.at[c][i], standard, product_sum);
    }
  });
  const Projection project(row_sums<Shape>(sum, product_sum, shared), width, statistics.rstd);
  for_each_chunk<Shape>(width, [&](int c, int j) {
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) g.at[c][i] = project(g.at[c][i], z.at[c][i]);
    store(c, j, g.at[c]);
  });
}

struct RowRange {
  int64_t begin, end;
};

// Of the block, where blocks share out the rows equally.
__device__ inline RowRange rows_of_block(int64_t num_rows) {
  const int64_t size = rows_per_block(num_rows), begin = blockIdx.x * size;
  return {begin, begin + size < num_rows ? begin + size : num_rows};
}

// Of the block, where it has a segment. Bounds are not trusted: a device cannot raise.
__device__ inline RowRange rows_of_segment(const int32_t* segments, int64_t num_rows) {
  const int64_t begin = segments[blockIdx.x], end = segments[blockIdx.x + 1];
  return {begin > 0 ? begin : 0, end < num_rows ? end : num_rows};
}

// row(n) for the rows that the thread is on.
template <typename Shape, typename F>
__device__ inline void for_each_row(const RowRange& rows, F row) {
  for (int64_t n = rows.begin + group_index<Shape>(); n < rows.end; n += Shape::kGroups) row(n);
}

// Floats of shared memory that a backward kernel needs.
template <typename Shape>
constexpr int kBackwardFloats =
    Shape::kGroups == 1 ? 2 * Shape::kWarps : Shape::kGroups * Shape::kMaxWidth;

}  // namespace sbrrt::cuda
