// gelu(x + bias) with the exact erf, and its derivative. A lane has kVec columns, the block's warps
// take turns in the rows of its block; docs/math/gelu.md explains the polynomial.
#include "cuda/gelu.h"

#include <type_traits>

#include "cuda/common/launch.cuh"
#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int64_t kMinRows = 4 * kWarps;  // of a block: few rows must still fill a GPU

// The normal distribution's cdf and e^(-t^2 / 2).
struct NormalValues {
  float cdf, bell;
};

// Phi(-|t|) = e^(-t^2 / 2) (1 / 2 + u P(u)) with u = 0.36 |t| / (1 + 0.36 |t|).
__device__ inline NormalValues normal_values(float t) {
  const float size = fminf(1e4f, fabsf(t) * 0.36f);
  const float bell = expf(t * t * -0.5f);
  const float u = size / (1.0f + size);
  float p = 2.170907706e-2f;
  p = fmaf(p, u, -9.948737919e-2f);
  p = fmaf(p, u, 1.423072666e-1f);
  p = fmaf(p, u, -4.442856461e-2f);
  p = fmaf(p, u, 2.518861927e-2f);
  p = fmaf(p, u, -1.585489959e-1f);
  p = fmaf(p, u, -9.935116768e-2f);
  p = fmaf(p, u, 8.207715154e-1f);
  p = fmaf(p, u, -1.108171463f);
  const float tail = bell * fmaf(p, u, 0.5f);
  return {t < 0.0f ? tail : 1.0f - tail, bell};
}

__device__ inline float gelu_derivative(float t, const NormalValues& n) {
  return fmaf(t * 0.398942280f, n.bell, n.cdf);
}

__host__ __device__ inline int64_t rows_of_block(int64_t num_rows) {
  const int64_t share = ceil_div(ceil_div(num_rows, kMinRows), kMaxRowBlocks);
  return kMinRows * (share > 1 ? share : 1);
}

// row(n) for the warp's rows of the block.
template <typename F>
__device__ inline void for_each_row(int64_t num_rows, F row) {
  const int64_t size = rows_of_block(num_rows), begin = blockIdx.y * size;
  const int64_t end = begin + size < num_rows ? begin + size : num_rows;
#pragma unroll 2
  for (int64_t n = begin + warp_index(); n < end; n += kWarps) row(n);
}

template <typename T, int N, bool kTangents>
__global__ void __launch_bounds__(kWarps* kWarpSize) gelu_forward_kernel(const GeluForwardParams p) {
  await_previous_kernel();
  const int64_t column = (int64_t{blockIdx.x} * kWarpSize + lane_index()) * N;
  if (column >= p.width) return;
  float bias[N];
  load_floats(p.bias + column, bias);
  for_each_row(p.num_rows, [&](int64_t row) {
    float x[N], tangent[N] = {};
    const int64_t tangent_row = row - (p.num_rows - p.tangents.num_rows);
    const bool has_tangent = kTangents && tangent_row >= 0;
    load_floats(row_of<T>(p.x, row) + column, x);
    if (has_tangent) load_floats(row_of<T>(p.tangents.x, tangent_row) + column, tangent);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float t = x[i] + bias[i];
      const NormalValues n = normal_values(t);
      x[i] = t * n.cdf;
      if constexpr (kTangents) tangent[i] *= gelu_derivative(t, n);
    }
    store_floats(row_of<T>(p.out, row) + column, x);
    if (has_tangent) store_floats(row_of<T>(p.tangents.out, tangent_row) + column, tangent);
  });
}

template <typename T, int N>
__global__ void __launch_bounds__(kWarps* kWarpSize) gelu_grad_kernel(const GeluGradParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, shared, [kWarps][kWarpSize * N]);
  const int first = lane_index() * N;
  const int64_t start = int64_t{blockIdx.x} * kWarpSize * N, column = start + first;
  float bias[N] = {}, sums[N] = {};
  if (column < p.width) {
    load_floats(p.bias + column, bias);
    for_each_row(p.num_rows, [&](int64_t row) {
      float x[N], grad[N];
      load_floats(row_of<T>(p.x, row) + column, x);
      load_floats(row_of<T>(p.grad, row) + column, grad);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float t = x[i] + bias[i];
        grad[i] *= gelu_derivative(t, normal_values(t));
        sums[i] += grad[i];
      }
      store_floats(row_of<T>(p.out, row) + column, grad);
    });
  }
  if (p.partial == nullptr) return;
  store_floats(shared[warp_index()] + first, sums);
  float* partial = p.partial + blockIdx.y * p.width + start;
  const int64_t left = p.width - start;
  for_each_column_sum<kWarps>(shared[0], kWarpSize * N, left < kWarpSize * N ? left : kWarpSize * N,
                              [&](int j, float sum) { partial[j] = sum; });
}

// The kernel for N elements at a time, all that 16 bytes hold where rows allow it, else one.
template <typename F>
cudaError_t with_kernel(ElementType dtype, int64_t width, bool is_vector, F run) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (is_vector && width % kVecSize<T> == 0) {
      return run(type, std::integral_constant<int, kVecSize<T>>{});
    }
    return run(type, std::integral_constant<int, 1>{});
  });
}

dim3 grid_of(int64_t num_rows, int64_t width, int n) {
  return dim3(static_cast<unsigned>(ceil_div(width, kWarpSize * n)),
              static_cast<unsigned>(gelu_row_blocks(num_rows)));
}

}  // namespace

int64_t gelu_row_blocks(int64_t num_rows) { return ceil_div(num_rows, rows_of_block(num_rows)); }

cudaError_t gelu_forward(const GeluForwardParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.dtype);
  const bool whole = is_whole(p.x, n) && is_whole(p.out, n) && is_whole(p.tangents.x, n) &&
                     is_whole(p.tangents.out, n) && is_aligned(p.bias);
  return with_kernel(p.dtype, p.width, whole, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int N = decltype(vec)::value;
    const dim3 grid = grid_of(p.num_rows, p.width, N), block(kWarps * kWarpSize);
    return with_bool(p.tangents.num_rows > 0, [&](auto tangents) {
      constexpr bool kTangents = decltype(tangents)::value;
      return launch<gelu_forward_kernel<T, N, kTangents>>(grid, block, 0, stream, p);
    });
  });
}

cudaError_t gelu_grad(const GeluGradParams& p, cudaStream_t stream) {
  const int n = 16 / dtype_size(p.dtype);
  const bool whole =
      is_whole(p.x, n) && is_whole(p.grad, n) && is_whole(p.out, n) && is_aligned(p.bias);
  return with_kernel(p.dtype, p.width, whole, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int N = decltype(vec)::value;
    return launch<gelu_grad_kernel<T, N>>(grid_of(p.num_rows, p.width, N),
                                          dim3(kWarps * kWarpSize), 0, stream, p);
  });
}

}  // namespace sbrrt::cuda
