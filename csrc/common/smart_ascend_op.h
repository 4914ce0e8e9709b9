// smart_ascend as an op (common/op.h).
#pragma once

#include <cmath>
#include <string_view>

#include "common/ascend_options.h"
#include "common/checks.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

struct SmartAscend {
  static constexpr auto kOp = "smart_ascend";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, c10::SymInt, double, bool,
                         std::string_view, double, std::string_view, std::string_view, TensorRef);
  TensorRef delta, gradient, mask, sequence;
  c10::SymInt num_sequences;
  double step_size;
  bool normalize_gradient;
  std::string_view projection;
  double radius;
  std::string_view norm, level;
  TensorRef out;  // like delta

  WriteSet check(at::DeviceType device) const;
  AscendOptions options() const;
  void run_cpu() const;
  void run_cuda() const;
};

// True for the first of two words, false for the second.
inline bool ascend_choice(const char* argument, std::string_view value, std::string_view first,
                          std::string_view second) {
  TORCH_CHECK_VALUE(value == first || value == second, "sbrrt::smart_ascend: ", argument,
                    " must be '", first, "' or '", second, "', got '", value, "'");
  return value == first;
}

// Raises where an option is none.
inline AscendOptions SmartAscend::options() const {
  TORCH_CHECK_VALUE(step_size > 0, "sbrrt::smart_ascend: step_size must be > 0, got ", step_size);
  TORCH_CHECK_VALUE(radius > 0 && std::isfinite(static_cast<float>(radius)),
                    "sbrrt::smart_ascend: radius must be > 0 and finite, got ", radius);
  AscendOptions result{};
  result.step_size = step_size;
  result.radius = static_cast<float>(radius);
  result.is_infinite = std::isinf(step_size);
  result.normalize_gradient = normalize_gradient;
  result.is_ball = ascend_choice("projection", projection, "ball", "normalize");
  result.is_sup = ascend_choice("norm", norm, "inf", "2");
  result.is_sequence = !ascend_choice("level", level, "token", "sequence");
  result.is_clamp = result.is_ball && result.is_sup && !result.is_infinite;
  result.is_sign = result.is_ball && result.is_sup && result.is_infinite;
  return result;
}

// All but the values of sequence.
inline WriteSet SmartAscend::check(at::DeviceType device) const {
  check_compute_dtype(kOp, "delta", delta, device);
  check_compute_dtype(kOp, "gradient", gradient, device);
  check_tensor(kOp, "delta", delta, delta.scalar_type(), "[num_tokens, hidden]", delta.dim() == 2);
  check_tensor(kOp, "gradient", gradient, gradient.scalar_type(), "of delta",
               gradient.sym_sizes() == delta.sym_sizes());
  const auto is_row = [&](TensorRef tensor) {
    return tensor.defined() && tensor.dim() == 1 && tensor.sym_size(0) == delta.sym_size(0);
  };
  check_tensor(kOp, "mask", mask, at::kBool, "[num_tokens]", is_row(mask));
  check_tensor(kOp, "sequence", sequence, at::kLong, "[num_tokens]", is_row(sequence));
  check_device(kOp, "delta", delta, device);
  check_device(kOp, "gradient", gradient, device);
  check_device(kOp, "mask", mask, device);
  check_device(kOp, "sequence", sequence, device);
  options();
  check_written(kOp, "out", out, delta.scalar_type(), "of delta",
                out.sym_sizes() == delta.sym_sizes(), device);
  return {kOp,
          {{"out", out}},
          {{"delta", delta}, {"gradient", gradient}, {"mask", mask}, {"sequence", sequence}}};
}

}  // namespace sbrrt
