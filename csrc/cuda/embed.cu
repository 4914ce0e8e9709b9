// dropout(LN(word[id] + position[p] + type[t])) and the gradient of the sum. A row stays in registers;
// docs/math/embed.md has the formulas.
#include "cuda/embed.h"

#include "cuda/common/dropout.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layernorm.cuh"

namespace sbrrt::cuda {
namespace {

// A row of s.
template <typename T>
class EmbeddingRow {
 public:
  __device__ EmbeddingRow(const EmbedParams& in, int64_t token) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int64_t index = in.tables[i].indices[token];
      if (index < 0 || index >= in.tables[i].num_rows) is_known_ = false;
      rows_[i] = row_of<T>(in.tables[i].rows, index);
    }
  }

  template <int N>
  __device__ void load(int column, float (&s)[N]) const {
    float position[N] = {}, type[N] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] = nanf("");
    if (!is_known_) return;
    load_floats(rows_[0] + column, s);
    load_floats(rows_[1] + column, position);
    load_floats(rows_[2] + column, type);
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] += position[i] + type[i];
  }

 private:
  const T* rows_[3];
  bool is_known_ = true;
};

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) embed_forward_kernel(const EmbedForwardParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [Shape::kWarps]);
  const int64_t token = int64_t{blockIdx.x} * Shape::kGroups + group_index<Shape>();
  if (token >= p.in.num_tokens) return;
  RowValues<Shape> s;
  const EmbeddingRow<T> in(p.in, token);
  for_each_chunk<Shape>(p.in.width, [&](int c, int j) { in.load(j, s.at[c]); });
  const RowStatistics statistics = row_statistics<Shape>(s, p.in.width, p.eps, shared);
  const RowDropout dropout(p.in.dropout, token);
  for_each_chunk<Shape>(p.in.width, [&](int c, int j) {
    float weight[Shape::kVec], y[Shape::kVec];
    load_floats(p.weight + j, weight);
    load_floats(p.shift + j, y);
    const uint32_t kept = dropout.template kept<Shape::kVec>(j);
#pragma unroll
    for (int i = 0; i < Shape::kVec; ++i) {
      y[i] = fmaf(statistics.standard(s.at[c][i]), weight[i], y[i]) * dropout.factor(kept, i);
    }
    store_floats(row_of<T>(p.out, token) + j, y);
  });
  if (threadIdx.x % Shape::kRowThreads == 0) {
    p.mean[token] = statistics.mean;
    p.rstd[token] = statistics.rstd;
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    embed_backward_kernel(const EmbedBackwardParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [kBackwardFloats<Shape>]);
  const int width = p.in.width;
  ParameterSums<Shape> sums;
  for_each_row<Shape>(rows_of_block(p.in.num_tokens), [&](int64_t token) {
    const EmbeddingRow<T> in(p.in, token);
    const RowDropout dropout(p.in.dropout, token);
    const auto load = [&](int, int j, float (&s)[Shape::kVec], float (&dy)[Shape::kVec]) {
      in.load(j, s);
      load_floats(row_of<T>(p.grad, token) + j, dy);
      const uint32_t kept = dropout.template kept<Shape::kVec>(j);
#pragma unroll
      for (int i = 0; i < Shape::kVec; ++i) dy[i] *= dropout.factor(kept, i);
    };
    const auto store = [&](int, int j, const float (&ds)[Shape::kVec]) {
      store_floats(p.ds + token * width + j, ds);
    };
    backward_row({p.mean[token], p.rstd[token]}, p.weight, width, sums, shared, load, store);
  });
  float* partial = p.partial + int64_t{blockIdx.x} * 2 * width;
  store_column_sums(sums.weight, width, partial, shared);
  store_column_sums(sums.shift, width, partial + width, shared);
}

// run(TypeTag<T>, Shape) for the tables' dtype and width.
template <typename F>
cudaError_t with_kernel(const EmbedParams& in, bool others_are_whole, F run) {
  return with_dtype(in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int n = kVecSize<T>;
    bool is_vector = others_are_whole && in.width % n == 0;
    for (const EmbedTable& table : in.tables) is_vector = is_vector && is_whole(table.rows, n);
    return with_row_shape<T>(is_vector, in.width, [&](auto shape) { return run(type, shape); });
  });
}

}  // namespace

cudaError_t embed_forward(const EmbedForwardParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.in.dtype);
  const bool whole = is_whole(p.out, n) && all_aligned({p.weight, p.shift});
  return with_kernel(p.in, whole, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using Shape = decltype(shape);
    const dim3 grid(static_cast<unsigned>(ceil_div(p.in.num_tokens, Shape::kGroups)));
    return launch<embed_forward_kernel<T, Shape>>(grid, dim3(Shape::kThreads), 0, stream, p);
  });
}

cudaError_t embed_backward(const EmbedBackwardParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.in.dtype);
  const bool whole = is_whole(p.grad, n) && all_aligned({p.weight, p.ds, p.partial});
  return with_kernel(p.in, whole, [&](auto type, auto shape) {
    using T = typename decltype(type)::type;
    using Shape = decltype(shape);
    const dim3 grid(static_cast<unsigned>(num_row_blocks(p.in.num_tokens)));
    return launch<embed_backward_kernel<T, Shape>>(grid, dim3(Shape::kThreads), 0, stream, p);
  });
}

}  // namespace sbrrt::cuda
