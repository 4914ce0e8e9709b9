// adamw_ema_, adamw_ema_rows_ and gradient_norm as ops (common/op.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "common/checks.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

// What all tensors of an update share.
struct AdamwSettings {
  TensorRef learning_rate;               // [] or [number of params]
  at::ArrayRef<double> weight_decay;  // one per parameter
  double beta1, beta2, eps;
  TensorRef clip_factor;  // []
  TensorRef step;         // [] or [number of params]
  double ema_beta;
};

// Everything the update takes but its numbers. An optional list is empty or has one entry per
// parameter, where an entry without elements means none for this parameter. A parameter whose entry
// of grads has no elements stays as it is, and its moments may be missing as well.
struct AdamwLists {
  at::TensorList params, grads, exp_avg, exp_avg_sq;
  at::TensorList ema, low_precision, ema_low_precision;  // optional
};

struct AdamwEma {
  static constexpr auto kOp = "adamw_ema_";
  using Signature = void(at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                         at::TensorList, at::TensorList, at::TensorList, TensorRef,
                         at::ArrayRef<double>, double, double, double, TensorRef, TensorRef,
                         double);
  AdamwLists lists;
  AdamwSettings settings;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// A table [num_rows, width] of which some rows have a gradient.
struct AdamwEmaRows {
  static constexpr auto kOp = "adamw_ema_rows_";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, double, double, double, TensorRef,
                         TensorRef, double);
  TensorRef param, grad, rows, touched, exp_avg, exp_avg_sq, ema;
  AdamwSettings settings;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;

  // The table names itself as its gradient, which has the right shape.
  AdamwLists lists() const { return {param, param, exp_avg, exp_avg_sq, ema, {}, {}}; }
};

struct GradientNorm {
  static constexpr auto kOp = "gradient_norm";
  using Signature = void(at::TensorList, double, TensorRef);
  at::TensorList grads;
  double max_norm;  // 0 does not clip
  TensorRef out;    // float32 [3]: norm, clip factor, 1 if the norm is finite, else 0

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// What the checks below ask of.
struct AdamwChecks : AdamwLists {
  const char* op;
  at::DeviceType device;
};

inline std::string item_name(const char* list, size_t index) {
  return c10::str(list, "[", index, "]");
}

// The clip factor of a norm, as torch.nn.utils.clip_grad_norm_ has it; NaN if it is not finite.
inline float clip_factor_of(float norm, double max_norm) {
  if (!std::isfinite(norm)) return std::numeric_limits<float>::quiet_NaN();
  return max_norm > 0 ? static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6))) : 1.0f;
}

inline void check_gradient(const char* op, size_t index, const at::Tensor& grad,
                           at::DeviceType device) {
  const std::string name = item_name("grads", index);
  TORCH_CHECK_TYPE(grad.defined(), "sbrrt::", op, ": ", name, " is undefined");
  const at::ScalarType dtype = grad.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, "sbrrt::", op,
                   ": grads must have dtype float32 or bfloat16, got ", dtype, " in ", name);
  check_tensor(op, name.c_str(), grad, dtype, "any", true);
  check_device(op, name.c_str(), grad, device);
}

inline void check_like_param(const AdamwChecks& lists, const char* list, size_t index,
                             const at::Tensor& tensor, at::ScalarType dtype) {
  const at::Tensor& param = lists.params[index];
  const std::string name = item_name(list, index), shape = c10::str(param.sym_sizes());
  check_tensor(lists.op, name.c_str(), tensor, dtype, shape.c_str(),
               tensor.sym_sizes() == param.sym_sizes());
}

// A tensor that is written in place.
inline void check_state(const AdamwChecks& lists, const char* list, size_t index,
                        const at::Tensor& tensor, at::ScalarType dtype = at::kFloat) {
  check_like_param(lists, list, index, tensor, dtype);
  check_device(lists.op, item_name(list, index).c_str(), tensor, lists.device);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "sbrrt::", lists.op, ": ", list, "[", index,
                    "] is written in place and must be contiguous, got strides ",
                    tensor.sym_strides());
}

inline void check_count(const AdamwChecks& lists, const char* list, size_t count,
                        bool is_optional = false) {
  const size_t num_params = lists.params.size();
  TORCH_CHECK_VALUE(count == num_params || (is_optional && count == 0), "sbrrt::", lists.op, ": ",
                    list, " must have ", is_optional ? "no entries or " : "", num_params,
                    " like params, got ", count);
}

inline void check_optional_list(const AdamwChecks& lists, const char* list, at::TensorList tensors,
                                at::ScalarType dtype) {
  check_count(lists, list, tensors.size(), true);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined() || tensors[i].sym_numel() != 0) {
      check_state(lists, list, i, tensors[i], dtype);
    }
  }
}

// Whether the parameter stays as it is.
inline bool is_idle(const AdamwLists& lists, size_t index) {
  return lists.grads[index].sym_numel() == 0 && lists.params[index].sym_numel() != 0;
}

inline void check_moments(const AdamwChecks& lists, size_t index) {
  for (const auto& [name, list] : {std::pair<const char*, at::TensorList>{"exp_avg", lists.exp_avg},
                                   {"exp_avg_sq", lists.exp_avg_sq}}) {
    const bool is_missing = is_idle(lists, index) && list[index].defined() &&
                            list[index].sym_numel() == 0;
    if (!is_missing) check_state(lists, name, index, list[index]);
  }
}

inline void check_adamw_lists(const AdamwChecks& lists) {
  const size_t num_params = lists.params.size();
  check_count(lists, "grads", lists.grads.size());
  check_count(lists, "exp_avg", lists.exp_avg.size());
  check_count(lists, "exp_avg_sq", lists.exp_avg_sq.size());
  for (size_t i = 0; i < num_params; ++i) {
    check_tensor(lists.op, item_name("params", i).c_str(), lists.params[i], at::kFloat, "any",
                 true);
    check_state(lists, "params", i, lists.params[i]);
    check_gradient(lists.op, i, lists.grads[i], lists.device);
    if (!is_idle(lists, i)) {
      check_like_param(lists, "grads", i, lists.grads[i], lists.grads[i].scalar_type());
    }
    check_moments(lists, i);
  }
  check_optional_list(lists, "ema", lists.ema, at::kFloat);
  check_optional_list(lists, "low_precision", lists.low_precision, at::kBFloat16);
  check_optional_list(lists, "ema_low_precision", lists.ema_low_precision, at::kBFloat16);
  for (size_t i = 0; i < lists.ema_low_precision.size(); ++i) {
    const bool has_ema = !lists.ema.empty() && lists.ema[i].sym_numel() != 0;
    TORCH_CHECK_VALUE(has_ema || lists.ema_low_precision[i].sym_numel() == 0,
                      "sbrrt::", lists.op, ": ema_low_precision[", i, "] needs ema[", i, "]");
  }
}

inline void check_adamw_rows(const AdamwEmaRows& update, at::DeviceType device) {
  constexpr auto op = AdamwEmaRows::kOp;
  const auto& [param, grad, rows, touched, exp_avg, exp_avg_sq, ema, settings] = update;
  TORCH_CHECK_VALUE(param.dim() == 2, "sbrrt::", op, ": param must have two dimensions, got ",
                    describe(param));
  check_tensor(op, "rows", rows, at::kLong, "[number of rows]", rows.dim() == 1);
  check_tensor(op, "grad", grad, at::kFloat, "[number of rows, width]",
               grad.dim() == 2 && grad.sym_size(0) == rows.sym_size(0) &&
                   grad.sym_size(1) == param.sym_size(1));
  check_tensor(op, "touched", touched, at::kBool, "[rows of the table]",
               touched.dim() == 1 && touched.sym_size(0) == param.sym_size(0));
  for (const auto& [name, tensor] : {std::pair<const char*, const at::Tensor&>{"rows", rows},
                                     {"grad", grad}, {"touched", touched}}) {
    check_device(op, name, tensor, device);
  }
  TORCH_CHECK_VALUE(touched.is_contiguous(),
                    "sbrrt::", op, ": touched is written in place and must be contiguous");
}

// One number, or one per parameter.
inline void check_per_param(const AdamwChecks& lists, const char* name, const at::Tensor& tensor) {
  const auto num_params = static_cast<int64_t>(lists.params.size());
  check_tensor(lists.op, name, tensor, tensor.scalar_type(), "[] or [number of params]",
               tensor.dim() == 0 || (tensor.dim() == 1 && tensor.sym_size(0) == num_params));
  check_device(lists.op, name, tensor, lists.device);
}

inline void check_adamw_settings(const AdamwChecks& lists, const AdamwSettings& s) {
  const char* op = lists.op;
  TORCH_CHECK_TYPE(s.learning_rate.defined() && (s.learning_rate.scalar_type() == at::kFloat ||
                                               s.learning_rate.scalar_type() == at::kDouble),
                   "sbrrt::", op, ": learning_rate must have dtype float32 or float64, got ",
                   describe(s.learning_rate));
  check_per_param(lists, "learning_rate", s.learning_rate);
  check_tensor(op, "clip_factor", s.clip_factor, at::kFloat, "[]", s.clip_factor.dim() == 0);
  check_device(op, "clip_factor", s.clip_factor, lists.device);
  TORCH_CHECK_TYPE(s.step.defined() &&
                       (s.step.scalar_type() == at::kLong || s.step.scalar_type() == at::kFloat),
                   "sbrrt::", op, ": step must have dtype int64 or float32, got ",
                   describe(s.step));
  check_per_param(lists, "step", s.step);
  check_count(lists, "weight_decay", s.weight_decay.size());
  for (const double decay : s.weight_decay) {
    TORCH_CHECK_VALUE(decay >= 0, "sbrrt::", op, ": weight_decay must be >= 0, got ", decay);
  }
  TORCH_CHECK_VALUE(s.beta1 >= 0 && s.beta1 < 1 && s.beta2 >= 0 && s.beta2 < 1,
                    "sbrrt::", op, ": betas must be in [0, 1), got ", s.beta1, " and ", s.beta2);
  TORCH_CHECK_VALUE(s.eps >= 0, "sbrrt::", op, ": eps must be >= 0, got ", s.eps);
  TORCH_CHECK_VALUE(s.ema_beta >= 0 && s.ema_beta <= 1,
                    "sbrrt::", op, ": ema_beta must be in [0, 1], got ", s.ema_beta);
}

inline Arguments adamw_read(const AdamwSettings& s) {
  return {{"learning_rate", s.learning_rate}, {"clip_factor", s.clip_factor}, {"step", s.step}};
}

inline WriteSet AdamwEma::check(at::DeviceType device) const {
  const AdamwChecks checks{lists, kOp, device};
  check_adamw_lists(checks);
  check_adamw_settings(checks, settings);
  Arguments written, read = adamw_read(settings);
  append(written, "params", lists.params);
  append(written, "exp_avg", lists.exp_avg);
  append(written, "exp_avg_sq", lists.exp_avg_sq);
  append(written, "ema", lists.ema);
  append(written, "low_precision", lists.low_precision);
  append(written, "ema_low_precision", lists.ema_low_precision);
  append(read, "grads", lists.grads);
  return {kOp, std::move(written), read};
}

inline WriteSet AdamwEmaRows::check(at::DeviceType device) const {
  const AdamwChecks checks{lists(), kOp, device};
  check_adamw_lists(checks);
  check_adamw_rows(*this, device);
  check_adamw_settings(checks, settings);
  Arguments read = adamw_read(settings);
  append(read, {{"grad", grad}, {"rows", rows}});
  return {kOp,
          {{"param", param},
           {"touched", touched},
           {"exp_avg", exp_avg},
           {"exp_avg_sq", exp_avg_sq},
           {"ema", ema}},
          read};
}

inline WriteSet GradientNorm::check(at::DeviceType device) const {
  for (size_t i = 0; i < grads.size(); ++i) {
    check_gradient(kOp, i, grads[i], device);
  }
  TORCH_CHECK_VALUE(max_norm >= 0, "sbrrt::", kOp, ": max_norm must be >= 0, got ", max_norm);
  check_written(kOp, "out", out, at::kFloat, "[3]", out.dim() == 1 && out.sym_size(0) == 3,
                device);
  Arguments read;
  append(read, "grads", grads);
  return {kOp, {{"out", out}}, read};
}

}  // namespace sbrrt
