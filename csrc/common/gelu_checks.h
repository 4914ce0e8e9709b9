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

inline WriteSet gelu_write_set(const char* op, const at::Tensor& x, const at::Tensor& bias,
                               const at::Tensor& out, at::DeviceType device) {
  check_gelu(op, x, bias, device);
  check_written_rows(op, "out", out, x, x.scalar_type(), device);
  return {op, {{"out", out}}, {{"x", x}, {"bias", bias}}, {{"out", "x"}}};
}

// `result` is dx or out.
inline WriteSet gelu_change_write_set(const char* op, const char* argument,
                                      const at::Tensor& change, const at::Tensor& x,
                                      const at::Tensor& bias, const char* result,
                                      const at::Tensor& out, at::DeviceType device) {
  check_gelu_change(op, argument, change, x, bias, device);
  check_written_rows(op, result, out, x, x.scalar_type(), device);
  return {op,
          {{result, out}},
          {{argument, change}, {"x", x}, {"bias", bias}},
          {{result, argument}, {result, "x"}}};
}

}  // namespace sbrrt
