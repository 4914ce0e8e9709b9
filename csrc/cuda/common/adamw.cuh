// AdamW, the teacher's average and the low-precision copies of a few elements
// (docs/math/adamw_ema.md). Everything is loaded before anything is stored: the compiler does not know
// that the tensors lie apart, so it moves no load above a store.
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
  const int64_t rate_place = index * n.rate_stride, step_place = index * n.step_stride;
  const double rate = n.rate_is_double ? static_cast<const double*>(n.learning_rate)[rate_place]
                                       : static_cast<const float*>(n.learning_rate)[rate_place];
  const double step =
      n.step_is_integer ? static_cast<double>(static_cast<const int64_t*>(n.step)[step_place])
                        : static_cast<double>(static_cast<const float*>(n.step)[step_place]);
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

// N neighbouring elements of a tensor and of its state; zero where they are not there.
template <int N>
struct AdamwElements {
  float grad[N] = {}, mean[N] = {}, square[N] = {}, param[N] = {}, average[N] = {};
};

// Elements i ... i + N - 1, without the gradient.
template <int N>
__device__ inline void load_elements(const AdamwTensor& t, int64_t i, bool has_moments,
                                     AdamwElements<N>& x) {
  if (has_moments) {
    load_floats(t.exp_avg + i, x.mean);
    load_floats(t.exp_avg_sq + i, x.square);
  }
  load_floats(t.param + i, x.param);
  if (t.ema != nullptr) load_floats(t.ema + i, x.average);
}

template <int N>
__device__ inline void step_elements(const AdamwFactors& f, AdamwElements<N>& x) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float g = x.grad[k] * f.clip_factor;
    x.mean[k] = fmaf(f.new_mean, g - x.mean[k], x.mean[k]);
    x.square[k] = fmaf(f.new_square * g, g, f.old_square * x.square[k]);
    const float root = fmaf(sqrtf(x.square[k]), f.root_scale, f.eps);
    x.param[k] = x.param[k] * f.kept - f.step_size * (x.mean[k] / root);
  }
}

// The same without moments.
template <int N>
__device__ inline void decay_elements(const AdamwFactors& f, AdamwElements<N>& x) {
#pragma unroll
  for (int k = 0; k < N; ++k) x.param[k] *= f.kept;
}

// Moves the average towards the parameter, if there is one.
template <int N>
__device__ inline void store_average(const AdamwTensor& t, const AdamwFactors& f, int64_t i,
                                     AdamwElements<N>& x) {
  if (t.ema == nullptr) return;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float distance = x.param[k] - x.average[k];
    x.average[k] = f.ema_new < 0.5f ? fmaf(f.ema_new, distance, x.average[k])
                                    : x.param[k] - f.ema_old * distance;
  }
  store_floats(t.ema + i, x.average);
  if (t.ema_low_precision != nullptr) {
    store_floats(static_cast<__nv_bfloat16*>(t.ema_low_precision) + i, x.average);
  }
}

template <int N>
__device__ inline void store_elements(const AdamwTensor& t, const AdamwFactors& f, int64_t i,
                                      bool has_moments, AdamwElements<N>& x) {
  if (has_moments) {
    store_floats(t.exp_avg + i, x.mean);
    store_floats(t.exp_avg_sq + i, x.square);
  }
  store_floats(t.param + i, x.param);
  if (t.low_precision != nullptr) {
    store_floats(static_cast<__nv_bfloat16*>(t.low_precision) + i, x.param);
  }
  store_average(t, f, i, x);
}

// Whether four elements can be moved at once, from a multiple of 4 on.
__device__ inline bool is_vector(const AdamwTensor& t) {
  const auto bits = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  return (bits(t.param) | bits(t.exp_avg) | bits(t.exp_avg_sq) | bits(t.ema) |
          bits(t.low_precision) | bits(t.ema_low_precision) | bits(t.grad)) % 16 == 0;
}

}  // namespace sbrrt::cuda
