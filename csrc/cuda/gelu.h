// bias_gelu on CUDA: what its kernels are given, and their launchers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

struct GeluForwardParams {
  int64_t num_rows, width;
  Dtype dtype;  // of x and out
  ConstRows x;
  const float* bias;  // [width]
  Rows out;
};

// Backward, of a gradient, and tangent: out = change * gelu'(x + bias).
struct GeluChangeParams {
  int64_t num_rows, width;
  Dtype dtype;  // of x, change and out
  ConstRows x, change;
  const float* bias;
  Rows out;
  float* partial;  // [gelu_row_blocks, width]: the column sums of out; or null
};

// Blocks of rows of the column sums.
int64_t gelu_row_blocks(int64_t num_rows);

cudaError_t gelu_forward(const GeluForwardParams& params, cudaStream_t stream);
cudaError_t gelu_change(const GeluChangeParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
