// AdamW, the teacher's average and the low-precision copies of a few elements
// (docs/math/adamw_ema.md). Without a gradient it is zero; without moments they are.
#pragma once

#include "cuda/adamw.h"
#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {

// The numbers of one tensor's update, from those on the device.
struct AdamwFactors {
  float clip_factor;
  float new_mean;                // 1 - beta1
  float new_square, old_square;  // 1 - beta2, beta2
  float root_scale, eps;         // 1 / sqrt(1 - beta2^step)
  float ema_new, ema_old;        // 1 - ema_beta, ema_beta
  float kept;       // 1 - learning rate * weight decay
  float step_size;  // learning rate / (1 - beta1^step)
  bool is_left_out;  // nothing is written
};

// `index` is the tensor's place in its list. Powers are slow: one thread of a block comes here.
__device__ inline AdamwFactors adamw_factors(const AdamwNumbers& n, int index,
                                             double weight_decay) {
  const int64_t place = index * n.rate_stride;
  const double rate = n.rate_is_double ? static_cast<const double*>(n.learning_rate)[place]
                                       : static_cast<const float*>(n.learning_rate)[place];
  const double step = n.step_is_integer
                          ? static_cast<double>(*static_cast<const int64_t*>(n.step))
                          : static_cast<double>(*static_cast<const float*>(n.step));
  return {*n.clip_factor,
          static_cast<float>(1 - n.beta1),
          static_cast<float>(1 - n.beta2),
          static_cast<float>(n.beta2),
          static_cast<float>(1 / sqrt(1 - pow(n.beta2, step))),
          static_cast<float>(n.eps),
          static_cast<float>(1 - n.ema_beta),
          static_cast<float>(n.ema_beta),
          static_cast<float>(1 - rate * weight_decay),
          static_cast<float>(rate / (1 - pow(n.beta1, step))),
          *n.clip_factor != *n.clip_factor};
}

// The moments of elements i ... i + N - 1, and the update of the parameter.
template <int N>
__device__ inline void update_moments(const AdamwTensor& t, const AdamwFactors& f,
                                      const float (&grad)[N], int64_t i, float (&update)[N]) {
  float m[N], v[N];
  load_floats(t.exp_avg + i, m);
  load_floats(t.exp_avg_sq + i, v);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float g = grad[k] * f.clip_factor;
    m[k] = fmaf(f.new_mean, g - m[k], m[k]);
    v[k] = fmaf(f.new_square * g, g, f.old_square * v[k]);
    update[k] = f.step_size * (m[k] / fmaf(sqrtf(v[k]), f.root_scale, f.eps));
  }
  store_floats(t.exp_avg + i, m);
  store_floats(t.exp_avg_sq + i, v);
}

template <int N>
__device__ inline void update_params(const AdamwTensor& t, const AdamwFactors& f,
                                     const float (&update)[N], int64_t i) {
  float p[N], e[N];
  load_floats(t.param + i, p);
#pragma unroll
  for (int k = 0; k < N; ++k) p[k] = p[k] * f.kept - update[k];
  store_floats(t.param + i, p);
  if (t.low_precision != nullptr) {
    store_floats(static_cast<__nv_bfloat16*>(t.low_precision) + i, p);
  }
  if (t.ema == nullptr) return;
  load_floats(t.ema + i, e);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    e[k] = f.ema_new < 0.5f ? fmaf(f.ema_new, p[k] - e[k], e[k])
                            : p[k] - f.ema_old * (p[k] - e[k]);
  }
  store_floats(t.ema + i, e);
  if (t.ema_low_precision != nullptr) {
    store_floats(static_cast<__nv_bfloat16*>(t.ema_low_precision) + i, e);
  }
}

// Whether four elements can be moved at once, from a multiple of 4 on.
__device__ inline bool is_vector(const AdamwTensor& t) {
  const auto bits = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  return (bits(t.param) | bits(t.exp_avg) | bits(t.exp_avg_sq) | bits(t.ema) |
          bits(t.low_precision) | bits(t.ema_low_precision) | bits(t.grad)) % 16 == 0;
}

}  // namespace sbrrt::cuda
