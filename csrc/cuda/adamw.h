// adamw_ema_, adamw_ema_rows_ and gradient_norm on CUDA: what their kernels are given, and launchers.
// Tables of tensors travel in the kernel's parameters, up to 32764 bytes: a captured graph keeps them,
// and nothing has to be copied to the device.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

struct AdamwTensor {
  float *param, *exp_avg, *exp_avg_sq;  // [size], dense, as all of them
  float* ema;                             // or null
  void *low_precision, *ema_low_precision;  // bfloat16, or null
  const void* grad;  // or null: the parameter and its moments stay as they are
  int64_t size;
  double weight_decay;
};

// What all tensors of an update share; rate, clip factor and step are read on the device.
struct AdamwNumbers {
  const void* learning_rate;  // one, or one per tensor, rate_stride elements apart
  int64_t rate_stride;
  bool rate_is_double;  // else float
  const float* clip_factor;
  const void* step;  // as the rate
  int64_t step_stride;
  bool step_is_integer;  // int64, else float
  double beta1, beta2, eps, ema_beta;
};

constexpr int kMaxAdamwTensors = 400;
constexpr int64_t kAdamwPiece = 16384;  // elements of one block

// A tensor has the blocks first_block[i] ... first_block[i + 1] - 1.
struct AdamwParams {
  AdamwNumbers numbers;
  int num_tensors;
  int32_t first_block[kMaxAdamwTensors + 1];
  ElementType grad_dtype[kMaxAdamwTensors];
  AdamwTensor tensors[kMaxAdamwTensors];
};

// One table [num_rows, width], tensor.grad [count, width] of its `rows`, which ascend.
struct AdamwRowsParams {
  AdamwNumbers numbers;
  AdamwTensor tensor;
  int64_t num_rows, width, count;
  const int64_t* rows;  // [count]
  bool* touched;        // [num_rows], whether a row's moments are not all zero
};

constexpr int kMaxNormTensors = 1024;

struct GradientNormParams {
  int num_tensors;
  const void* data[kMaxNormTensors];
  int64_t size[kMaxNormTensors];
  ElementType dtype[kMaxNormTensors];
  int32_t first_block[kMaxNormTensors + 1];
  // Of all launches of one norm together; this one's blocks are partial_begin ... on.
  int64_t num_partial, partial_begin;
  unsigned long long* partial;  // [num_partial], the bits of a double each
  unsigned* ticket;             // one, 0 before the first launch
  double max_norm;              // 0 does not clip
  float* out;                   // [3]: norm, clip factor, 1 if the norm is finite, else 0
};

constexpr int64_t num_pieces(int64_t size) { return (size + kAdamwPiece - 1) / kAdamwPiece; }

cudaError_t adamw_ema(const AdamwParams& params, cudaStream_t stream);
cudaError_t adamw_ema_rows(const AdamwRowsParams& params, cudaStream_t stream);
cudaError_t gradient_norm(const GradientNormParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
