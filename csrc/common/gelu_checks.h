// What bias_gelu's forward, backward and tangent check alike.
#pragma once

#include "common/row_checks.h"

namespace sbrrt {

inline void check_gelu(const char* op, const at::Tensor& x, const at::Tensor& bias,
                       at::DeviceType device) {
  check_first_rows(op, "x", x, device);
  check_vector(op, "bias", bias, x.sym_size(1), device);
}

// `change` is the gradient or the tangent.
inline void check_gelu_change(const char* op, const char* argument, const at::Tensor& change,
                              const at::Tensor& x, const at::Tensor& bias,
                              at::DeviceType device) {
  check_gelu(op, x, bias, device);
  check_rows(op, argument, change, x.sym_size(0), x.sym_size(1), device);
}

}  // namespace sbrrt
