// bias_gelu on CUDA: what its kernels are given, and their launchers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

// Of the last num_rows rows of a forward.
struct GeluTangentParams {
  int64_t num_rows;
  ConstRows x;
  Rows out;
};

struct GeluForwardParams {
  int64_t num_rows, width;
  ElementType dtype;  // of x and out
  ConstRows x;
  const float* bias;  // [width]
  Rows out;
  GeluTangentParams tangents;  // of the same dtype
};

// Backward and JVP: out = grad * gelu'(x + bias), where grad is a gradient or a tangent.
struct GeluGradParams {
  int64_t num_rows, width;
  ElementType dtype;  // of x, grad and out
  ConstRows x, grad;
  const float* bias;
  Rows out;
  float* partial;  // [gelu_row_blocks, width]: the column sums of out; or null
};

// Blocks of rows of the column sums.
int64_t gelu_row_blocks(int64_t num_rows);

cudaError_t gelu_forward(const GeluForwardParams& params, cudaStream_t stream);
cudaError_t gelu_grad(const GeluGradParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
