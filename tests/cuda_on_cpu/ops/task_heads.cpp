// The launchers of the heads of a group of tasks, for tests/cuda_on_cpu/kernels.
#include "cuda/task_heads.h"

#include <cuda_on_cpu/export.h>

using namespace sbrrt;
using namespace sbrrt::cuda;

namespace {

// heads [count, 6] and scales [count] are the host's: their addresses.
#define HEADS int64_t count, int64_t hidden, int64_t heads, int64_t scales
#define POOLED \
  const float *pooled, int64_t stride, const float *factors, int64_t factors_stride

HeadList list_of(HEADS) {
  HeadList list{static_cast<int>(count), static_cast<int>(hidden), {}};
  int64_t first_output = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* f = reinterpret_cast<const int64_t*>(heads) + 6 * i;
    const double scale = reinterpret_cast<const double*>(scales)[i];
    list.heads[i] = {static_cast<HeadKind>(f[0]), static_cast<int32_t>(f[1]),
                     static_cast<int32_t>(f[3]), f[2], f[4], f[5], first_output, scale};
    first_output += list.heads[i].size();
  }
  return list;
}

PooledRows rows_of(POOLED) { return {{pooled, stride}, {factors, factors_stride}}; }

cudaError_t forward(HEADS, POOLED, const float* weights, int64_t num_outputs, float* out) {
  return heads_forward({list_of(count, hidden, heads, scales),
                        rows_of(pooled, stride, factors, factors_stride), weights, num_outputs,
                        out},
                       nullptr);
}

cudaError_t jvp(HEADS, POOLED, const float* weights, const float* tangent, int64_t tangent_stride,
                int64_t num_outputs, float* out) {
  return heads_jvp({list_of(count, hidden, heads, scales),
                    rows_of(pooled, stride, factors, factors_stride), weights,
                    {tangent, tangent_stride}, num_outputs, out},
                   nullptr);
}

cudaError_t vjp(HEADS, POOLED, const float* weights, const float* cotangents,
                int64_t num_sequences, float* dpooled) {
  return heads_vjp({list_of(count, hidden, heads, scales),
                    rows_of(pooled, stride, factors, factors_stride), weights, cotangents,
                    num_sequences, dpooled},
                   nullptr);
}

cudaError_t weight_gradients(HEADS, POOLED, const float* cotangents, const float* other,
                             int64_t other_stride, const float* other_factors,
                             int64_t other_factors_stride, const float* other_cotangents,
                             float* dweights) {
  return heads_weight_gradients(
      {list_of(count, hidden, heads, scales),
       other == nullptr ? 1 : 2,
       {rows_of(pooled, stride, factors, factors_stride),
        rows_of(other, other_stride, other_factors, other_factors_stride)},
       {cotangents, other_cotangents},
       dweights},
      nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(jvp)
CUDA_ON_CPU_EXPORT(vjp)
CUDA_ON_CPU_EXPORT(weight_gradients)
