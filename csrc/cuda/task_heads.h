// The heads of a group of tasks on CUDA: what their kernels are given, and their launchers. The
// table of heads travels in the kernel's parameters: a captured graph keeps it.
#pragma once

#include <cuda_runtime.h>

#include "common/task_heads.h"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

constexpr int kMaxHeads = 64;

struct HeadList {
  int count, hidden;
  Head heads[kMaxHeads];
};

// Float rows [num_sequences, hidden], and dropout's factors of them; null where there are none.
struct PooledRows {
  ConstRows pooled, factors;
};

struct HeadsForwardParams {
  HeadList list;
  PooledRows in;
  const float* weights;
  int64_t num_outputs;
  float* out;  // [num_outputs]
};

struct HeadsJvpParams {
  HeadList list;
  PooledRows in;
  const float* weights;
  ConstRows tangent;  // of the pooled vectors
  int64_t num_outputs;
  float* out;  // [num_outputs]
};

struct HeadsVjpParams {
  HeadList list;
  PooledRows in;
  const float *weights, *cotangents;
  int64_t num_sequences;
  float* dpooled;  // [num_sequences, hidden]
};

constexpr int kMaxPasses = 2;

struct HeadsWeightGradientsParams {
  HeadList list;
  int num_passes;
  PooledRows in[kMaxPasses];
  const float* cotangents[kMaxPasses];
  float* dweights;
};

cudaError_t heads_forward(const HeadsForwardParams& params, cudaStream_t stream);
cudaError_t heads_jvp(const HeadsJvpParams& params, cudaStream_t stream);
cudaError_t heads_vjp(const HeadsVjpParams& params, cudaStream_t stream);
cudaError_t heads_weight_gradients(const HeadsWeightGradientsParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
