// Checks of the symmetric_kl ops that need shapes alone; the meta implementation shares them.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/checks.h"

namespace sbrrt {

inline void check_kl_dtype(const char* op, const char* argument, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.defined() && (tensor.scalar_type() == at::kFloat ||
                                        tensor.scalar_type() == at::kBFloat16),
                   "sbrrt::", op, ": ", argument, " must have dtype float32 or bfloat16, got ",
                   describe(tensor));
}

// other is delta or tangent.
inline void check_kl_inputs(const char* op, const at::Tensor& logits, const char* other_name,
                            const at::Tensor& other, at::DeviceType device) {
  check_kl_dtype(op, "logits", logits);
  check_kl_dtype(op, other_name, other);
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
