// dropout_add_layernorm on CUDA: what its kernels are given, and their launchers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

constexpr int64_t kMaxLayerNormWidth = 2048;

// s = residual + M (x + bias), with dropout's factors M. The residual is fp32 or of the dtype of x.
struct ResidualParams {
  int64_t num_rows;
  int width;
  ElementType x_dtype, residual_dtype;
  ConstRows x, residual;
  const float* bias;  // [width]
  RowDropoutParams dropout;
};

// Of the last num_rows rows of a forward; of the dtypes of x and residual.
struct ResidualTangentParams {
  int64_t num_rows;
  ConstRows x, residual;
  Rows out, low;  // as in the forward
};

struct LayerNormForwardParams {
  ResidualParams in;
  const float *weight, *shift;  // [width]
  float eps;
  Rows out;  // of the residual's dtype
  Rows low;  // a bfloat16 copy of out, or no data
  float *mean, *rstd;  // [num_rows]
  ResidualTangentParams tangents;
};

// The gradient of out is grad + product.
struct LayerNormBackwardParams {
  ResidualParams in;
  ConstRows grad;     // of the residual's dtype
  ConstRows product;  // of the dtype of x, or no data
  const float *weight, *mean, *rstd;
  Rows dx, dresidual;  // of the dtypes of x and residual
  // Row bounds [num_segments + 1], and of each segment [3, width]: the sums over its rows for bias,
  // weight, shift; or no data.
  int64_t num_segments;
  const int32_t* segments;
  Rows sums;
};

struct LayerNormJvpParams {
  ResidualParams in;
  ConstRows x_tangent, residual_tangent;  // of the dtypes of x and residual
  const float *weight, *mean, *rstd;
  Rows out, low;  // as in the forward
};

// cudaErrorInvalidValue for rows wider than kMaxLayerNormWidth and for other pairs of dtypes.
cudaError_t layernorm_forward(const LayerNormForwardParams& params, cudaStream_t stream);
cudaError_t layernorm_backward(const LayerNormBackwardParams& params, cudaStream_t stream);
cudaError_t layernorm_jvp(const LayerNormJvpParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
