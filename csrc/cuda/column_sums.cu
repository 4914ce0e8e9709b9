// Column sums of a matrix, in an order that depends on its height alone. A lane has a column; the
// block's warps take every kWarps-th row.
#include "cuda/column_sums.h"

#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 16;

__global__ void __launch_bounds__(kWarps* kWarpSize)
    column_sums_kernel(const __grid_constant__ ColumnSumsParams p) {
  await_previous_kernel();
  SBRRT_SHARED(float, sums, [kWarps][kWarpSize]);
  const int lane = lane_index(), warp = warp_index();
  const int64_t num_columns = p.num_parts * p.width;
  const int64_t first = int64_t{blockIdx.x} * kWarpSize, column = first + lane;
  float sum = 0.0f;
  if (column < num_columns) {
#pragma unroll 4
    for (int64_t row = warp; row < p.num_blocks; row += kWarps) {
      sum += p.partial[row * num_columns + column];
    }
  }
  sums[warp][lane] = sum;
  const int64_t left = num_columns - first;
  for_each_column_sum<kWarps>(sums[0], kWarpSize, left < kWarpSize ? left : kWarpSize,
                              [&](int j, float total) {
    float* out = p.out[(first + j) / p.width];
    if (out != nullptr) out[(first + j) % p.width] = total;
  });
}

}  // namespace

cudaError_t column_sums(const ColumnSumsParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.num_parts * p.width, kWarpSize)));
  return launch<column_sums_kernel>(grid, dim3(kWarps * kWarpSize), 0, stream, p);
}

}  // namespace sbrrt::cuda
