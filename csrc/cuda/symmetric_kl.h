// symmetric_kl on CUDA: what its kernels are given, and their launchers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

// Logits, or something of their shape and of a dtype of its own.
struct KlTensor {
  const void* data;
  int64_t row_stride, class_stride;
  ElementType dtype;
};

struct KlParams {
  int64_t num_examples;
  int num_classes;
  KlTensor logits, other;  // other: delta, or the Fisher product's tangent
};

struct KlForwardParams {
  KlParams in;
  float* out;  // [num_examples]
};

struct KlBackwardParams {
  KlParams in;
  const float* grad;  // [num_examples], grad_stride elements apart
  int64_t grad_stride;
  void *dlogits, *ddelta;  // [num_examples, num_classes], dense, of their inputs' dtypes
};

struct KlFisherParams {
  KlParams in;
  float* out;  // [num_examples, num_classes]
};

cudaError_t symmetric_kl_forward(const KlForwardParams& params, cudaStream_t stream);
cudaError_t symmetric_kl_backward(const KlBackwardParams& params, cudaStream_t stream);
cudaError_t symmetric_kl_fisher(const KlFisherParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
