// The launchers of the objective and of SMART's smoothness, for tests/cuda_on_cpu/kernels.
#include "cuda/objective.h"

#include <cuda_on_cpu/export.h>

using namespace sbrrt;
using namespace sbrrt::cuda;

namespace {

// losses [count, 3], numbers [count, 2] and addresses [count, 3] (class weights, mean and scale of
// labels, on the device) are the host's: their addresses.
LossList list_of(int64_t count, int64_t losses, int64_t numbers, int64_t addresses) {
  LossList list{static_cast<int>(count), {}};
  int64_t first_output = 0, first_example = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* f = reinterpret_cast<const int64_t*>(losses) + 3 * i;
    const int64_t* at = reinterpret_cast<const int64_t*>(addresses) + 3 * i;
    const double* x = reinterpret_cast<const double*>(numbers) + 2 * i;
    list.tasks[i] = {static_cast<LossKind>(f[0]), static_cast<int32_t>(f[1]),
                     static_cast<int32_t>(f[2]), first_output, first_example, x[0], x[1],
                     reinterpret_cast<const float*>(at[0]),
                     reinterpret_cast<const double*>(at[1]),
                     reinterpret_cast<const double*>(at[2])};
    first_output += list.tasks[i].size();
    first_example += f[1];
  }
  return list;
}

cudaError_t all_terms(int64_t count, int64_t losses, int64_t numbers, int64_t addresses,
                      double smart_weight, double bregman_weight, double smart_factor,
                      const float* outputs, const float* labels, const float* adversarial,
                      const float* targets, const float* smart_values, float* terms,
                      float* grad_outputs, float* grad_adversarial) {
  return objective({list_of(count, losses, numbers, addresses),
                    {smart_weight, bregman_weight, smart_factor},
                    outputs, labels, adversarial, targets, smart_values, terms, grad_outputs,
                    grad_adversarial},
                   nullptr);
}

SmoothnessParams params_of(int64_t count, int64_t losses, int64_t numbers, int64_t addresses,
                           const float* outputs, const float* changes, int64_t num_examples,
                           float* out) {
  return {list_of(count, losses, numbers, addresses), outputs, changes, num_examples, out};
}

cudaError_t cotangents(int64_t count, int64_t losses, int64_t numbers, int64_t addresses,
                       const float* outputs, const float* changes, int64_t num_examples,
                       float* out) {
  return smoothness_cotangents(
      params_of(count, losses, numbers, addresses, outputs, changes, num_examples, out), nullptr);
}

cudaError_t values(int64_t count, int64_t losses, int64_t numbers, int64_t addresses,
                   const float* outputs, const float* changes, int64_t num_examples, float* out) {
  return smoothness_values(
      params_of(count, losses, numbers, addresses, outputs, changes, num_examples, out), nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(all_terms)
CUDA_ON_CPU_EXPORT(cotangents)
CUDA_ON_CPU_EXPORT(values)
