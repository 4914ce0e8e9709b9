// Sums of columns, in an order that depends on the number of rows alone. A lane has a column; the
// block's warps take every kWarps-th row.
#include "cuda/column_sums.h"

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 16;

__device__ inline float* sums_of(const ColumnSumsParams& p, int64_t layer) {
  return p.out_stride == 0 ? p.out[layer] : p.out[0] + layer * p.out_stride;
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    column_sums_kernel(const __grid_constant__ ColumnSumsParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, sums, [kWarps][kWarpSize]);
  const int lane = lane_index(), warp = warp_index();
  const int64_t first = int64_t{blockIdx.x} * kWarpSize, column = first + lane;
  float* out = sums_of(p, blockIdx.y);
  if (out == nullptr) return;
  float sum = 0.0f;
  if (column < p.width) {
    const T* x = row_of<T>(p.x, 0) + blockIdx.y * p.layer_stride + column;
#pragma unroll 4
    for (int64_t row = warp; row < p.num_rows; row += kWarps) {
      const float weight = row < p.num_weights ? p.weights[row] : 1.0f;
      sum = fmaf(weight, to_float(x[row * p.x.stride]), sum);
    }
  }
  sums[warp][lane] = sum;
  const int64_t left = p.width - first;
  for_each_column_sum<kWarps>(sums[0], kWarpSize, left < kWarpSize ? left : kWarpSize,
                              [&](int j, float total) { out[first + j] = total; });
}

}  // namespace

cudaError_t column_sums(const ColumnSumsParams& p, cudaStream_t stream) {
  if (p.out_stride == 0 && p.num_layers > kMaxColumnSums) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.width, kWarpSize)),
                  static_cast<unsigned>(p.num_layers));
  return with_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch<column_sums_kernel<T>>(grid, dim3(kWarps * kWarpSize), 0, stream, p);
  });
}

}  // namespace sbrrt::cuda
