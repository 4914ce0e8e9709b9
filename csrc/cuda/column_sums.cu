// Column sums of a matrix, in an order that depends on its height alone. A lane has a column; the
// block's warps take every kWarps-th row.
#include "cuda/column_sums.h"

#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 16;

__global__ void __launch_bounds__(kWarps* kWarpSize) column_sums_kernel(const ColumnSumsParams p) {
  SBRRT_SHARED(float, sums, [kWarps][kWarpSize]);
  const int lane = lane_index(), warp = warp_index();
  const int64_t column = int64_t{blockIdx.x} * kWarpSize + lane;
  float sum = 0.0f;
  if (column < p.width) {
#pragma unroll 4
    for (int64_t row = warp; row < p.num_blocks; row += kWarps) {
      sum += p.partial[row * p.width + column];
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= p.width) return;
#pragma unroll
  for (int other = 1; other < kWarps; ++other) sum += sums[other][lane];
  p.out[column] = sum;
}

}  // namespace

cudaError_t column_sums(const ColumnSumsParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.width, kWarpSize)));
  return launch<column_sums_kernel>(grid, dim3(kWarps * kWarpSize), 0, stream, p);
}

}  // namespace sbrrt::cuda
