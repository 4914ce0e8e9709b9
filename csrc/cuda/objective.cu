// The objective of a group of tasks: a block has a task, its warps an example each in turn. Warps'
// sums are added in their order. docs/math/objective.md derives the formulas.
#include "cuda/objective.h"

#include "cuda/common/any_dtype.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

// A warp, which works on an example's classes.
struct WarpTeam {
  template <typename F>
  __device__ void each(int count, const F& f) const {
    for (int j = lane_index(); j < count; j += kWarpSize) f(j);
  }
  __device__ double sum(double x) const { return warp_sum(x); }
  __device__ float largest(float x) const { return warp_max(x); }
};

// The sum over the block's warps, in their order; thread 0 gets it.
__device__ inline double block_total(double x, double* shared) {
  if (lane_index() == 0) shared[warp_index()] = x;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  }
  __syncthreads();
  return sum;
}

__device__ inline const float* at_offset(const float* data, int64_t offset) {
  return data == nullptr ? nullptr : data + offset;
}
__device__ inline float* at_offset(float* data, int64_t offset) {
  return data == nullptr ? nullptr : data + offset;
}

__global__ void __launch_bounds__(kThreads, 1) objective_kernel(const ObjectiveParams p) {
  await_previous_kernel();
  SBRRT_SHARED(double, shared, [kWarps]);
  const LossTask& task = p.list.tasks[blockIdx.x];
  ObjectiveTerms sums;
  for (int i = warp_index(); i < task.num_examples; i += kWarps) {
    const int64_t at = task.first_output + int64_t{i} * task.num_outputs;
    sums += objective_example(
        WarpTeam{}, task, p.weights,
        {p.outputs + at, at_offset(p.adversarial, at), at_offset(p.targets, at),
         p.labels[task.first_example + i], p.grad_outputs + at, at_offset(p.grad_adversarial, at)});
  }
  sums = {block_total(sums.loss, shared), block_total(sums.smart, shared),
          block_total(sums.bregman, shared)};
  if (threadIdx.x != 0) return;
  write_terms(task, p.weights, sums, at_offset(p.smart_values, blockIdx.x),
              p.terms + 4 * int64_t{blockIdx.x});
}

// A warp has an example of any task.
__global__ void __launch_bounds__(kThreads, 1)
    smoothness_cotangents_kernel(const SmoothnessParams p) {
  await_previous_kernel();
  const int64_t example = int64_t{blockIdx.x} * kWarps + warp_index();
  if (example >= p.num_examples) return;
  int i = 0;
  while (i + 1 < p.list.count && example >= p.list.tasks[i + 1].first_example) ++i;
  const LossTask& task = p.list.tasks[i];
  const int64_t at = task.first_output + (example - task.first_example) * task.num_outputs;
  smoothness_cotangent(WarpTeam{}, task, p.outputs + at, p.changes + at, p.out + at);
}

__global__ void __launch_bounds__(kThreads, 1) smoothness_values_kernel(const SmoothnessParams p) {
  await_previous_kernel();
  SBRRT_SHARED(double, shared, [kWarps]);
  const LossTask& task = p.list.tasks[blockIdx.x];
  double sum = 0.0;
  for (int i = warp_index(); i < task.num_examples; i += kWarps) {
    const int64_t at = task.first_output + int64_t{i} * task.num_outputs;
    sum += smoothness_value(WarpTeam{}, task, p.outputs + at, p.changes + at);
  }
  sum = block_total(sum, shared);
  if (threadIdx.x == 0) p.out[blockIdx.x] = static_cast<float>(sum / task.num_examples);
}

}  // namespace

cudaError_t objective(const ObjectiveParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.list.count));
  return launch<objective_kernel>(grid, dim3(kThreads), 0, stream, p);
}

cudaError_t smoothness_cotangents(const SmoothnessParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.num_examples, kWarps)));
  return launch<smoothness_cotangents_kernel>(grid, dim3(kThreads), 0, stream, p);
}

cudaError_t smoothness_values(const SmoothnessParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.list.count));
  return launch<smoothness_values_kernel>(grid, dim3(kThreads), 0, stream, p);
}

}  // namespace sbrrt::cuda
