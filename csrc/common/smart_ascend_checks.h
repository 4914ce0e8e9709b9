// The options of smart_ascend and its checks that need shapes alone: for every device and for
// tracing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <string_view>

#include "common/ascend_options.h"
#include "common/checks.h"

namespace sbrrt {

// True for the first of two words, false for the second.
inline bool ascend_choice(const char* argument, std::string_view value, std::string_view first,
                          std::string_view second) {
  TORCH_CHECK_VALUE(value == first || value == second, "sbrrt::smart_ascend: ", argument,
                    " must be '", first, "' or '", second, "', got '", value, "'");
  return value == first;
}

inline AscendOptions ascend_options(double step_size, bool normalize_gradient,
                                    std::string_view projection, double radius,
                                    std::string_view norm, std::string_view level) {
  TORCH_CHECK_VALUE(step_size > 0, "sbrrt::smart_ascend: step_size must be > 0, got ", step_size);
  TORCH_CHECK_VALUE(radius > 0 && std::isfinite(static_cast<float>(radius)),
                    "sbrrt::smart_ascend: radius must be > 0 and finite, got ", radius);
  AscendOptions options{};
  options.step_size = step_size;
  options.radius = static_cast<float>(radius);
  options.is_infinite = std::isinf(step_size);
  options.normalize_gradient = normalize_gradient;
  options.is_ball = ascend_choice("projection", projection, "ball", "normalize");
  options.is_sup = ascend_choice("norm", norm, "inf", "2");
  options.is_sequence = !ascend_choice("level", level, "token", "sequence");
  options.is_clamp = options.is_ball && options.is_sup && !options.is_infinite;
  options.is_sign = options.is_ball && options.is_sup && options.is_infinite;
  return options;
}

inline void check_ascend_tensors(const at::Tensor& delta, const at::Tensor& gradient,
                                 const at::Tensor& mask, const at::Tensor& sequence,
                                 at::DeviceType device) {
  constexpr auto op = "smart_ascend";
  check_compute_dtype(op, "delta", delta, device);
  check_compute_dtype(op, "gradient", gradient, device);
  check_tensor(op, "delta", delta, delta.scalar_type(), "[num_tokens, hidden]", delta.dim() == 2);
  check_tensor(op, "gradient", gradient, gradient.scalar_type(), "of delta",
               gradient.sym_sizes() == delta.sym_sizes());
  const auto is_row = [&](const at::Tensor& tensor) {
    return tensor.defined() && tensor.dim() == 1 && tensor.sym_size(0) == delta.sym_size(0);
  };
  check_tensor(op, "mask", mask, at::kBool, "[num_tokens]", is_row(mask));
  check_tensor(op, "sequence", sequence, at::kLong, "[num_tokens]", is_row(sequence));
  check_device(op, "delta", delta, device);
  check_device(op, "gradient", gradient, device);
  check_device(op, "mask", mask, device);
  check_device(op, "sequence", sequence, device);
}

}  // namespace sbrrt
