// Rows of features in registers, as floats. kWarps warps hold a row: thread t of them has, in its
// chunk c, the kVec elements from (c * kRowThreads + t) * kVec on. A block has kGroups rows at a time.
#pragma once

#include "cuda/common/dispatch.cuh"
#include "cuda/common/philox.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"

namespace sbrrt::cuda {

template <int VEC, int WARPS, int GROUPS, int CHUNKS>
struct RowShape {
  static constexpr int kVec = VEC, kWarps = WARPS, kGroups = GROUPS, kChunks = CHUNKS;
  static constexpr int kRowThreads = WARPS * kWarpSize;
  static constexpr int kThreads = kRowThreads * GROUPS;
  static constexpr int kMaxWidth = kRowThreads * CHUNKS * VEC;
  static_assert(WARPS == 1 || GROUPS == 1, "rows of several warps meet at the block's barrier");
};

// Up to 384 features of 4 bytes or 768 of 2; up to 1024 or 2048; and what 16 bytes do not divide.
template <typename T>
using NarrowRows = RowShape<kVecSize<T>, 1, 4, 3>;
template <typename T>
using WideRows = RowShape<kVecSize<T>, 4, 1, 2>;
using AnyRows = RowShape<1, 8, 1, 8>;

// run(Shape{}) for rows of `width` elements of type T; is_whole says that kVecSize<T> of them can be
// moved at once.
template <typename T, typename F>
cudaError_t with_row_shape(bool is_whole, int64_t width, F run) {
  if (is_whole && width <= NarrowRows<T>::kMaxWidth) return run(NarrowRows<T>{});
  if (is_whole && width <= WideRows<T>::kMaxWidth) return run(WideRows<T>{});
  if (width <= AnyRows::kMaxWidth) return run(AnyRows{});
  return cudaErrorInvalidValue;
}

template <typename Shape>
struct RowValues {
  float at[Shape::kChunks][Shape::kVec];
};

// f(chunk, column) for the thread's chunks that lie within the row.
template <typename Shape, typename F>
__device__ inline void for_each_chunk(int width, F f) {
  const int thread = threadIdx.x % Shape::kRowThreads;
#pragma unroll
  for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
    const int column = (chunk * Shape::kRowThreads + thread) * Shape::kVec;
    if (column < width) f(chunk, column);
  }
}

// Which of the block's rows the thread is on.
template <typename Shape>
__device__ inline int group_index() {
  return threadIdx.x / Shape::kRowThreads;
}

template <int N, typename T>
__device__ inline void load_floats(const T* from, float (&to)[N]) {
  const Vec<T, N> vec = load<N>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(vec[i]);
}

template <int N, typename T>
__device__ inline void store_floats(T* to, const float (&from)[N]) {
  Vec<T, N> vec;
#pragma unroll
  for (int i = 0; i < N; ++i) vec[i] = from_float<T>(from[i]);
  store<N>(to, vec);
}

template <typename T>
__device__ inline const T* row_of(const ConstRows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.stride;
}
template <typename T>
__device__ inline T* row_of(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

// Sums of two numbers over a row's threads. `shared` has 2 * kWarps floats.
template <typename Shape>
__device__ inline float2 row_sums(float a, float b, float* shared) {
  a = warp_sum(a);
  b = warp_sum(b);
  if constexpr (Shape::kWarps > 1) {
    if (lane_index() == 0) {
      shared[2 * warp_index()] = a;
      shared[2 * warp_index() + 1] = b;
    }
    __syncthreads();
    a = shared[0];
    b = shared[1];
#pragma unroll
    for (int warp = 1; warp < Shape::kWarps; ++warp) {
      a += shared[2 * warp];
      b += shared[2 * warp + 1];
    }
    __syncthreads();
  }
  return make_float2(a, b);
}

// The sums over the rows of a block's groups, one after the other, into `to` [width]. `shared` has
// kGroups * kMaxWidth floats where there are several groups.
template <typename Shape>
__device__ inline void store_column_sums(const RowValues<Shape>& sums, int width, float* to,
                                         float* shared) {
  if constexpr (Shape::kGroups == 1) {
    for_each_chunk<Shape>(width, [&](int c, int j) { store_floats(to + j, sums.at[c]); });
  } else {
    float* mine = shared + group_index<Shape>() * Shape::kMaxWidth;
    for_each_chunk<Shape>(width, [&](int c, int j) { store_floats(mine + j, sums.at[c]); });
    for_each_column_sum<Shape::kGroups>(shared, Shape::kMaxWidth, width,
                                        [&](int j, float sum) { to[j] = sum; });
  }
}

}  // namespace sbrrt::cuda
