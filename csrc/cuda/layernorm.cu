// LN(residual + dropout(x + bias)): forward, backward and JVP. A row stays in registers, so every
// input is read once; docs/math/layernorm.md derives the formulas.
#include "cuda/layernorm.h"

#include "cuda/common/dropout.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layernorm.cuh"

namespace sbrrt::cuda {
namespace {

// A row of s, and which of its elements dropout kept: a bit for each of the thread's.
template <typename X, typename R, typename Shape>
class ResidualRow {
 public:
  __device__ ResidualRow(const ResidualParams& in, int64_t row)
      : x_(row_of<X>(in.x, row)),
        residual_(row_of<R>(in.residual, row)),
        bias_(in.bias),
        dropout_(in.dropout, row) {}

  // Elements column ... of s.
  __device__ void load(int chunk, int column, float (&s)[Shape::kVec]) {
    float x[Shape::kVec], bias[Shape::kVec];
    load_floats(x_ + column, x);
    load_floats(bias_ + column, bias);
    load_floats(residual_ + column, s);
    const uint32_t bits = dropout_.template kept<Shape::kVec>(column);
    kept_ |= bits << (chunk * Shape::kVec);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      s[i] = fmaf(x[i] + bias[i], dropout_.factor(bits, i), s[i]);
    }
  }

  // Of element i of a chunk that was loaded.
  __device__ float factor(int chunk, int i) const {
    return dropout_.factor(kept_, chunk * Shape::kVec + i);
  }

 private:
  static_assert(Shape::kChunks * Shape::kVec <= 32);
  const X* x_;
  const R* residual_;
  const float* bias_;
  RowDropout dropout_;
  uint32_t kept_ = 0;
};

// Result and bfloat16 copy.
template <typename R, int N>
__device__ inline void store_row(const Rows& out, const Rows& low, int64_t row, int column,
                                 const float (&y)[N]) {
  store_floats(row_of<R>(out, row) + column, y);
  if (low.data != nullptr) store_floats(row_of<__nv_bfloat16>(low, row) + column, y);
}

// The tangent of a row along t = tresidual + M tx, from its standard row z and the sums of t and t z.
template <typename R, typename Shape>
__device__ inline void store_tangent(const RowValues<Shape>& t, const RowValues<Shape>& z,
                                     const Projection& project, const float* weight, int width,
                                     const Rows& out, const Rows& low, int64_t row) {
  for_each_chunk<Shape>(width, [&](int c, int j) {
    float y[Shape::kVec];
    load_floats(weight + j, y);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) y[i] *= project(t.at[c][i], z.at[c][i]);
    store_row<R>(out, low, row, j, y);
  });
}

// The tangent of a row s, which becomes the standard row.
template <typename X, typename R, typename Shape>
__device__ inline void forward_tangent(const LayerNormForwardParams& p, int64_t row,
                                       const ResidualRow<X, R, Shape>& in,
                                       const RowStatistics& statistics, RowValues<Shape>& s,
                                       float* shared) {
  RowValues<Shape> t;
  float sum = 0.0f, product_sum = 0.0f;
  for_each_chunk<Shape>(p.in.width, [&](int c, int j) {
    float x_tangent[Shape::kVec];
    load_floats(row_of<X>(p.tangents.x, row) + j, x_tangent);
    load_floats(row_of<R>(p.tangents.residual, row) + j, t.at[c]);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      s.at[c][i] = statistics.standard(s.at[c][i]);
      t.at[c][i] = fmaf(x_tangent[i], in.factor(c, i), t.at[c][i]);
      sum += t.at[c][i];
      product_sum = fmaf(t.at[c][i], s.at[c][i], product_sum);
    }
  });
  const Projection project(row_sums<Shape>(sum, product_sum, shared), p.in.width, statistics.rstd);
  store_tangent<R>(t, s, project, p.weight, p.in.width, p.tangents.out, p.tangents.low, row);
}

template <typename X, typename R, typename Shape, bool kTangents>
__global__ void __launch_bounds__(Shape::kThreads)
    layernorm_forward_kernel(const LayerNormForwardParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [2 * Shape::kWarps]);
  const int64_t row = int64_t{blockIdx.x} * Shape::kGroups + group_index<Shape>();
  if (row >= p.in.num_rows) return;
  RowValues<Shape> s;
  ResidualRow<X, R, Shape> in(p.in, row);
  for_each_chunk<Shape>(p.in.width, [&](int c, int j) { in.load(c, j, s.at[c]); });
  const RowStatistics statistics = row_statistics<Shape>(s, p.in.width, p.eps, shared);
  for_each_chunk<Shape>(p.in.width, [&](int c, int j) {
    float weight[Shape::kVec], y[Shape::kVec];
    load_floats(p.weight + j, weight);
    load_floats(p.shift + j, y);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      y[i] = fmaf(statistics.standard(s.at[c][i]), weight[i], y[i]);
    }
    store_row<R>(p.out, p.low, row, j, y);
  });
  if (threadIdx.x % Shape::kRowThreads == 0) {
    p.mean[row] = statistics.mean;
    p.rstd[row] = statistics.rstd;
  }
  if constexpr (kTangents) {
    const int64_t first = p.in.num_rows - p.tangents.num_rows;
    if (row >= first) forward_tangent(p, row - first, in, statistics, s, shared);
  }
}

template <typename X, typename R, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    layernorm_backward_kernel(const LayerNormBackwardParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [kBackwardFloats<Shape>]);
  const int width = p.in.width;
  ParameterSums<Shape> sums;
  RowValues<Shape> bias_sums{};
  const bool has_segments = p.segments != nullptr;
  const RowRange rows = has_segments ? rows_of_segment(p.segments, p.in.num_rows)
                                     : rows_of_block(p.in.num_rows);
  for_each_row<Shape>(rows, [&](int64_t row) {
    ResidualRow<X, R, Shape> in(p.in, row);
    const auto load = [&](int c, int j, float (&s)[Shape::kVec], float (&dy)[Shape::kVec]) {
      float product[Shape::kVec] = {};
      in.load(c, j, s);
      load_floats(row_of<R>(p.grad, row) + j, dy);
      if (p.product.data != nullptr) load_floats(row_of<X>(p.product, row) + j, product);
#pragma unroll
      for (int i = 0; i < Shape::kVec; ++i) dy[i] += product[i];
    };
    const auto store = [&](int c, int j, const float (&ds)[Shape::kVec]) {
      float dx[Shape::kVec];
#pragma unroll
      for (int i = 0; i < Shape::kVec; ++i) {
        dx[i] = ds[i] * in.factor(c, i);
        bias_sums.at[c][i] += dx[i];
      }
      store_floats(row_of<R>(p.dresidual, row) + j, ds);
      store_floats(row_of<X>(p.dx, row) + j, dx);
    };
    backward_row({p.mean[row], p.rstd[row]}, p.weight, width, sums, shared, load, store);
  });
  if (!has_segments) return;
  float* to = row_of<float>(p.sums, blockIdx.x);
  store_column_sums(bias_sums, width, to, shared);
  store_column_sums(sums.weight, width, to + width, shared);
  store_column_sums(sums.shift, width, to + 2 * width, shared);
}

template <typename X, typename R, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    layernorm_jvp_kernel(const LayerNormJvpParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [2 * Shape::kWarps]);
  const int64_t row = int64_t{blockIdx.x} * Shape::kGroups + group_index<Shape>();
  if (row >= p.in.num_rows) return;
  const int width = p.in.width;
  const RowStatistics statistics{p.mean[row], p.rstd[row]};
  ResidualRow<X, R, Shape> in(p.in, row);
  RowValues<Shape> z, t;
  float sum = 0.0f, product_sum = 0.0f;
  for_each_chunk<Shape>(width, [&](int c, int j) {
    float x_tangent[Shape::kVec];
    in.load(c, j, z.at[c]);
    load_floats(row_of<X>(p.x_tangent, row) + j, x_tangent);
    load_floats(row_of<R>(p.residual_tangent, row) + j, t.at[c]);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      z.at[c][i] = statistics.standard(z.at[c][i]);
      t.at[c][i] = fmaf(x_tangent[i], in.factor(c, i), t.at[c][i]);
      sum += t.at[c][i];
      product_sum = fmaf(t.at[c][i], z.at[c][i], product_sum);
    }
  });
  const Projection project(row_sums<Shape>(sum, product_sum, shared), width, statistics.rstd);
  store_tangent<R>(t, z, project, p.weight, width, p.out, p.low, row);
}

// run(TypeTag<X>, TypeTag<R>, Shape) for the dtypes and the width.
template <typename F>
cudaError_t with_kernel(const ResidualParams& in, bool others_are_whole, F run) {
  return with_dtype(in.x_dtype, [&](auto x) {
    using X = typename decltype(x)::type;
    constexpr int n = kVecSize<X>;
    const bool is_vector = others_are_whole && in.width % n == 0 && is_whole(in.x, n) &&
                           is_whole(in.residual, n) && is_aligned(in.bias);
    return with_row_shape<X>(is_vector, in.width, [&](auto shape) {
      if (in.residual_dtype == ElementType::kFloat) return run(x, TypeTag<float>{}, shape);
      return in.residual_dtype == in.x_dtype ? run(x, x, shape) : cudaErrorInvalidValue;
    });
  });
}

template <typename Shape>
dim3 grid_of(int64_t num_rows) {
  return dim3(static_cast<unsigned>(ceil_div(num_rows, Shape::kGroups)));
}

}  // namespace

cudaError_t layernorm_forward(const LayerNormForwardParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.in.x_dtype);
  const ResidualTangentParams& t = p.tangents;
  const bool whole = is_whole(p.out, n) && is_whole(p.low, n) && is_whole(t.x, n) &&
                     is_whole(t.residual, n) && is_whole(t.out, n) && is_whole(t.low, n) &&
                     all_aligned({p.weight, p.shift});
  return with_kernel(p.in, whole, [&](auto x, auto residual, auto shape) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using Shape = decltype(shape);
    const dim3 grid = grid_of<Shape>(p.in.num_rows), block(Shape::kThreads);
    return with_bool(p.tangents.num_rows > 0, [&](auto tangents) {
      constexpr bool kTangents = decltype(tangents)::value;
      return launch<layernorm_forward_kernel<X, R, Shape, kTangents>>(grid, block, 0, stream, p);
    });
  });
}

cudaError_t layernorm_backward(const LayerNormBackwardParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.in.x_dtype);
  const bool whole = is_whole(p.grad, n) && is_whole(p.product, n) && is_whole(p.dx, n) &&
                     is_whole(p.dresidual, n) && is_whole(p.sums, n) && all_aligned({p.weight});
  return with_kernel(p.in, whole, [&](auto x, auto residual, auto shape) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using Shape = decltype(shape);
    const bool has_segments = p.segments != nullptr;
    const dim3 grid(static_cast<unsigned>(has_segments ? p.num_segments
                                                       : num_row_blocks(p.in.num_rows)));
    return launch<layernorm_backward_kernel<X, R, Shape>>(grid, dim3(Shape::kThreads), 0, stream,
                                                          p);
  });
}

cudaError_t layernorm_jvp(const LayerNormJvpParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.in.x_dtype);
  const bool whole = is_whole(p.x_tangent, n) && is_whole(p.residual_tangent, n) &&
                     is_whole(p.out, n) && is_whole(p.low, n) && all_aligned({p.weight});
  return with_kernel(p.in, whole, [&](auto x, auto residual, auto shape) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using Shape = decltype(shape);
    return launch<layernorm_jvp_kernel<X, R, Shape>>(grid_of<Shape>(p.in.num_rows),
                                                     dim3(Shape::kThreads), 0, stream, p);
  });
}

}  // namespace sbrrt::cuda
