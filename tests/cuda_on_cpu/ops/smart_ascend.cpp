// smart_ascend's launcher, for tests/cuda_on_cpu/kernels.
#include "cuda/smart_ascend.h"

#include <cmath>

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

// Options as csrc/common/smart_ascend_checks.h makes them of the op's arguments.
sbrrt::AscendOptions options_of(double step_size, int64_t normalize_gradient, int64_t is_ball,
                                double radius, int64_t is_sup, int64_t is_sequence) {
  const bool infinite = std::isinf(step_size), clips = is_ball && is_sup;
  return {step_size,   static_cast<float>(radius), infinite,         normalize_gradient != 0,
          is_ball != 0, is_sup != 0,               is_sequence != 0, clips && !infinite,
          clips && infinite};
}

cudaError_t ascend(int64_t num_tokens, int64_t num_sequences, int64_t width, const void* delta,
                   int64_t delta_stride, int64_t delta_type, const void* gradient,
                   int64_t gradient_stride, int64_t gradient_type, const bool* mask,
                   const int64_t* sequence, void* out, double step_size,
                   int64_t normalize_gradient, int64_t is_ball, double radius, int64_t is_sup,
                   int64_t is_sequence) {
  return smart_ascend({options_of(step_size, normalize_gradient, is_ball, radius, is_sup,
                                  is_sequence),
                       num_tokens,
                       num_sequences,
                       static_cast<int>(width),
                       element(delta_type),
                       element(gradient_type),
                       {delta, delta_stride},
                       {gradient, gradient_stride},
                       mask,
                       sequence,
                       out},
                      nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(ascend)
