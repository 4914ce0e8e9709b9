// Sums of columns on CUDA: of rows of several layers, and over the blocks of rows that other kernels
// left.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

constexpr int kMaxColumnSums = 2;  // results that lie anywhere

// out[l, j] = sum over r of weights[r] x[l, r, j]
struct ColumnSumsParams {
  ElementType dtype;  // of x
  int64_t num_layers, num_rows, width;
  ConstRows x;           // of layer 0
  int64_t layer_stride;  // of x
  const float* weights;  // [num_weights], of the first rows; 1 of the others
  int64_t num_weights;
  // Layer l is written at out[0] + l * out_stride; if that is 0 at out[l], or nowhere if it is null.
  float* out[kMaxColumnSums];
  int64_t out_stride;
};

// cudaErrorInvalidValue for more layers than results.
cudaError_t column_sums(const ColumnSumsParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
