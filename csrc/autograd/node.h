// What the ops' nodes of the autograd graph have in common. Each calls its op's forward and
// backward through the dispatcher, so it serves every device that has them.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <array>
#include <initializer_list>
#include <utility>

#include "autograd/only_inputs.h"

namespace sbrrt {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The op of this schema, to be kept in a static variable.
template <typename Signature>
auto native_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Whether a call must go through its node; for tangents, which a node refuses, too.
inline bool needs_node(std::initializer_list<std::reference_wrapper<const at::Tensor>> inputs) {
  const bool records = at::GradMode::is_enabled();
  for (const at::Tensor& input : inputs) {
    if ((records && input.requires_grad()) || input._fw_grad(0).defined()) return true;
  }
  return false;
}

inline bool needs_weight_gradient(const AutogradContext* context, size_t input) {
  return !input_gradients_only && context->needs_input_grad(input);
}

// The gradients that `compute` returns; differentiating them raises. Those not wanted may be
// undefined.
template <typename F>
variable_list once_differentiable(F compute) {
  variable_list gradients;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    gradients = compute();
  }
  if (!at::GradMode::is_enabled()) return gradients;
  for (at::Tensor& gradient : gradients) {
    if (gradient.defined()) gradient.requires_grad_();
  }
  torch::autograd::DelayedError error("the gradients of sbrrt's ops cannot be differentiated",
                                      static_cast<int64_t>(gradients.size()));
  return error.apply(std::move(gradients));
}

}  // namespace sbrrt
