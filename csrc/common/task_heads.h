// The heads of a batch's tasks, for host and device; docs/math/task_heads.md derives the gradients.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace sbrrt {

enum class HeadKind : int32_t { kLinear, kConcat, kConcatDifference, kCosine };

constexpr int kHeadKinds = 4;
constexpr double kCosineEps = 1e-6;  // lengths below this are taken as this

// One task's head and its examples in the batch; offsets are in elements of the flat weights.
struct Head {
  HeadKind kind;
  int32_t num_examples, num_outputs;
  int64_t first_sequence, weight_offset, bias_offset;
  int64_t first_output;  // of all tasks' outputs
  double scale;          // of a cosine

  SBRRT_HOST_DEVICE bool is_cosine() const { return kind == HeadKind::kCosine; }
  SBRRT_HOST_DEVICE int sequences_per_example() const { return kind == HeadKind::kLinear ? 1 : 2; }
  SBRRT_HOST_DEVICE int64_t num_sequences() const {
    return int64_t{num_examples} * sequences_per_example();
  }
  // Pooled vectors' worth of features that the weights have.
  SBRRT_HOST_DEVICE int num_vectors() const { return is_cosine() ? 0 : static_cast<int>(kind) + 1; }
  SBRRT_HOST_DEVICE int64_t size() const { return int64_t{num_examples} * num_outputs; }
};

SBRRT_HOST_DEVICE inline float sign_of(float x) {
  return static_cast<float>((x > 0.0f) - (x < 0.0f));
}

// scale * cos(u, v) from the products of u and v. Its gradient in u is
// across * v - along_u * u; likewise in v.
struct Cosine {
  double value, across, along_u, along_v;

  SBRRT_HOST_DEVICE Cosine(double scale, double uv, double uu, double vv) {
    const double u = std::sqrt(uu), v = std::sqrt(vv);
    const double u_divisor = u < kCosineEps ? kCosineEps : u;
    const double v_divisor = v < kCosineEps ? kCosineEps : v;
    across = scale / (u_divisor * v_divisor);
    value = uv * across;
    along_u = u < kCosineEps ? 0.0 : value / uu;
    along_v = v < kCosineEps ? 0.0 : value / vv;
  }
};

}  // namespace sbrrt
