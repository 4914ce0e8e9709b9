// Scale of every row to sum one: the smallest kernel that has a barrier, a shuffle and shared memory.
#include "cuda/common/launch.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"

#include <cuda_on_cpu/export.h>

using namespace sbrrt::cuda;

namespace {

constexpr int kWarps = 4;

struct Params {
  const float* x;  // [num_rows, width]
  float* y;
  int64_t width;
};

__global__ void scale_rows(const __grid_constant__ Params params) {
  SBRRT_SHARED(float, partial, [kWarps]);
  const float* x = params.x + blockIdx.x * params.width;
  float* y = params.y + blockIdx.x * params.width;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < params.width; i += blockDim.x) sum += x[i];
  sum = block_sum<kWarps>(sum, partial);
  for (int64_t i = threadIdx.x; i < params.width; i += blockDim.x) y[i] = x[i] / sum;
}

cudaError_t scale_rows_forward(const float* x, float* y, int64_t num_rows, int64_t width) {
  return launch<scale_rows>(num_rows, kWarps * kWarpSize, 0, nullptr, Params{x, y, width});
}

}  // namespace

CUDA_ON_CPU_EXPORT(scale_rows_forward)
