// Checks of adamw_ema_ and gradient_norm that need shapes alone; the meta implementation shares them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>

#include "common/checks.h"
#include "common/write_set.h"

namespace sbrrt {

// Everything the update takes but its numbers. An optional list is empty or has one entry per
// parameter, where an entry without elements means none for this parameter.
struct AdamwLists {
  const char* op;
  at::TensorList params, grads, exp_avg, exp_avg_sq;
  at::TensorList ema, low_precision, ema_low_precision;  // optional
  at::DeviceType device;
};

inline std::string item_name(const char* list, size_t index) {
  return c10::str(list, "[", index, "]");
}

inline void check_gradient(const char* op, size_t index, const at::Tensor& grad,
                           at::ScalarType dtype, at::DeviceType device) {
  const std::string name = item_name("grads", index);
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, "sbrrt::", op,
                   ": grads must have dtype float32 or bfloat16, got ", dtype);
  check_tensor(op, name.c_str(), grad, dtype, "any", true);
  check_device(op, name.c_str(), grad, device);
}

inline void check_like_param(const AdamwLists& lists, const char* list, size_t index,
                             const at::Tensor& tensor, at::ScalarType dtype) {
  const at::Tensor& param = lists.params[index];
  const std::string name = item_name(list, index), shape = c10::str(param.sym_sizes());
  check_tensor(lists.op, name.c_str(), tensor, dtype, shape.c_str(),
               tensor.sym_sizes() == param.sym_sizes());
}

// A tensor that is written in place.
inline void check_state(const AdamwLists& lists, const char* list, size_t index,
                        const at::Tensor& tensor, at::ScalarType dtype = at::kFloat) {
  check_like_param(lists, list, index, tensor, dtype);
  check_device(lists.op, item_name(list, index).c_str(), tensor, lists.device);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "sbrrt::", lists.op, ": ", list, "[", index,
                    "] is written in place and must be contiguous, got strides ",
                    tensor.sym_strides());
}

inline void check_count(const AdamwLists& lists, const char* list, size_t count,
                        bool is_optional = false) {
  const size_t num_params = lists.params.size();
  TORCH_CHECK_VALUE(count == num_params || (is_optional && count == 0), "sbrrt::", lists.op, ": ",
                    list, " must have ", is_optional ? "no entries or " : "", num_params,
                    " like params, got ", count);
}

inline void check_optional_list(const AdamwLists& lists, const char* list, at::TensorList tensors,
                                at::ScalarType dtype) {
  check_count(lists, list, tensors.size(), true);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined() || tensors[i].sym_numel() != 0) {
      check_state(lists, list, i, tensors[i], dtype);
    }
  }
}

inline void check_adamw_lists(const AdamwLists& lists) {
  const size_t num_params = lists.params.size();
  check_count(lists, "grads", lists.grads.size());
  check_count(lists, "exp_avg", lists.exp_avg.size());
  check_count(lists, "exp_avg_sq", lists.exp_avg_sq.size());
  for (size_t i = 0; i < num_params; ++i) {
    check_tensor(lists.op, item_name("params", i).c_str(), lists.params[i], at::kFloat, "any",
                 true);
    check_state(lists, "params", i, lists.params[i]);
    TORCH_CHECK_TYPE(lists.grads[i].defined(), "sbrrt::", lists.op, ": grads[", i,
                     "] is undefined");
    const at::ScalarType dtype = lists.grads[0].scalar_type();
    check_gradient(lists.op, i, lists.grads[i], dtype, lists.device);
    check_like_param(lists, "grads", i, lists.grads[i], dtype);
    check_state(lists, "exp_avg", i, lists.exp_avg[i]);
    check_state(lists, "exp_avg_sq", i, lists.exp_avg_sq[i]);
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

// A table [num_rows, width] of which some rows have a gradient; `lists` names the table as its own
// gradient, which has the right shape.
inline void check_adamw_rows(const AdamwLists& lists, const at::Tensor& grad,
                             const at::Tensor& rows, const at::Tensor& touched) {
  const char* op = lists.op;
  check_adamw_lists(lists);
  const at::Tensor& param = lists.params[0];
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
    check_device(op, name, tensor, lists.device);
  }
  TORCH_CHECK_VALUE(touched.is_contiguous(),
                    "sbrrt::", op, ": touched is written in place and must be contiguous");
}

inline void check_adamw_numbers(const AdamwLists& lists, const at::Tensor& learning_rate,
                                at::ArrayRef<double> weight_decay, double beta1, double beta2,
                                double eps, const at::Tensor& clip_factor, const at::Tensor& step,
                                double ema_beta) {
  const char* op = lists.op;
  const auto num_params = static_cast<int64_t>(lists.params.size());
  TORCH_CHECK_TYPE(learning_rate.defined() && (learning_rate.scalar_type() == at::kFloat ||
                                               learning_rate.scalar_type() == at::kDouble),
                   "sbrrt::", op, ": learning_rate must have dtype float32 or float64, got ",
                   describe(learning_rate));
  check_tensor(op, "learning_rate", learning_rate, learning_rate.scalar_type(),
               "[] or [number of params]",
               learning_rate.dim() == 0 ||
                   (learning_rate.dim() == 1 && learning_rate.sym_size(0) == num_params));
  check_tensor(op, "clip_factor", clip_factor, at::kFloat, "[]", clip_factor.dim() == 0);
  TORCH_CHECK_TYPE(step.defined() &&
                       (step.scalar_type() == at::kLong || step.scalar_type() == at::kFloat),
                   "sbrrt::", op, ": step must have dtype int64 or float32, got ",
                   describe(step));
  check_tensor(op, "step", step, step.scalar_type(), "[]", step.dim() == 0);
  check_device(op, "learning_rate", learning_rate, lists.device);
  check_device(op, "clip_factor", clip_factor, lists.device);
  check_device(op, "step", step, lists.device);
  check_count(lists, "weight_decay", weight_decay.size());
  for (const double decay : weight_decay) {
    TORCH_CHECK_VALUE(decay >= 0, "sbrrt::", op, ": weight_decay must be >= 0, got ", decay);
  }
  TORCH_CHECK_VALUE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
                    "sbrrt::", op, ": betas must be in [0, 1), got ", beta1, " and ", beta2);
  TORCH_CHECK_VALUE(eps >= 0, "sbrrt::", op, ": eps must be >= 0, got ", eps);
  TORCH_CHECK_VALUE(ema_beta >= 0 && ema_beta <= 1,
                    "sbrrt::", op, ": ema_beta must be in [0, 1], got ", ema_beta);
}

struct AdamwScalars {
  const at::Tensor &learning_rate, &clip_factor, &step;
};

// After the other checks.
inline WriteSet adamw_write_set(const AdamwLists& lists, const AdamwScalars& scalars) {
  Arguments written, read{{"learning_rate", scalars.learning_rate},
                          {"clip_factor", scalars.clip_factor},
                          {"step", scalars.step}};
  append(written, "params", lists.params);
  append(written, "exp_avg", lists.exp_avg);
  append(written, "exp_avg_sq", lists.exp_avg_sq);
  append(written, "ema", lists.ema);
  append(written, "low_precision", lists.low_precision);
  append(written, "ema_low_precision", lists.ema_low_precision);
  append(read, "grads", lists.grads);
  return {lists.op, std::move(written), read};
}

inline WriteSet adamw_rows_write_set(const AdamwLists& lists, const AdamwScalars& scalars,
                                     const at::Tensor& grad, const at::Tensor& rows,
                                     const at::Tensor& touched) {
  return {lists.op,
          {{"param", lists.params[0]},
           {"touched", touched},
           {"exp_avg", lists.exp_avg[0]},
           {"exp_avg_sq", lists.exp_avg_sq[0]},
           {"ema", lists.ema[0]}},
          {{"grad", grad},
           {"rows", rows},
           {"learning_rate", scalars.learning_rate},
           {"clip_factor", scalars.clip_factor},
           {"step", scalars.step}}};
}

inline void check_gradients(at::TensorList grads, at::DeviceType device) {
  for (size_t i = 0; i < grads.size(); ++i) {
    TORCH_CHECK_TYPE(grads[i].defined(), "sbrrt::gradient_norm: grads[", i, "] is undefined");
    check_gradient("gradient_norm", i, grads[i], grads[0].scalar_type(), device);
  }
}

}  // namespace sbrrt
