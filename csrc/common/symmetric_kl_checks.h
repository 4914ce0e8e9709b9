// Checks of the symmetric_kl ops that need shapes alone: for every device and for tracing.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/checks.h"

namespace sbrrt {

// other is delta or tangent.
inline void check_kl_inputs(const char* op, const at::Tensor& logits, const char* other_name,
                            const at::Tensor& other, at::DeviceType device) {
  check_compute_dtype(op, "logits", logits, device);
  check_compute_dtype(op, other_name, other, device);
  check_tensor(op, "logits", logits, logits.scalar_type(), "[num_examples, num_classes >= 1]",
               logits.dim() == 2 && logits.sym_size(1) >= 1);
  check_tensor(op, other_name, other, other.scalar_type(), "of logits",
               other.sym_sizes() == logits.sym_sizes());
  check_device(op, "logits", logits, device);
  check_device(op, other_name, other, device);
}

inline void check_kl_gradient(const at::Tensor& grad, const at::Tensor& logits,
                              at::DeviceType device) {
  constexpr auto op = "symmetric_kl_backward";
  check_tensor(op, "grad", grad, at::kFloat, "[num_examples]",
               grad.defined() && grad.dim() == 1 && grad.sym_size(0) == logits.sym_size(0));
  check_device(op, "grad", grad, device);
}

}  // namespace sbrrt
