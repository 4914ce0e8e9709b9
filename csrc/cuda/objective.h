// The objective of a group of tasks on CUDA: what its kernels are given, and their launchers. The
// table of tasks travels in the kernel's parameters: a captured graph keeps it.
#pragma once

#include <cuda_runtime.h>

#include "common/objective.h"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

constexpr int kMaxTasks = 64;

struct LossList {
  int count;
  LossTask tasks[kMaxTasks];
};

// Vectors of all tasks; null where there is none.
struct ObjectiveParams {
  LossList list;
  ObjectiveWeights weights;
  const float *outputs, *labels, *adversarial, *targets;
  const float* smart_values;  // [num_tasks]
  float* terms;               // [num_tasks, 4]
  float *grad_outputs, *grad_adversarial;
};

struct SmoothnessParams {
  LossList list;
  const float *outputs, *changes;
  int64_t num_examples;
  float* out;  // [num_outputs] of cotangents, [num_tasks] of values
};

cudaError_t objective(const ObjectiveParams& params, cudaStream_t stream);
cudaError_t smoothness_cotangents(const SmoothnessParams& params, cudaStream_t stream);
cudaError_t smoothness_values(const SmoothnessParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
