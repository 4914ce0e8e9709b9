// bias_gelu's forward, backward and JVP as ops (common/op.h).
#pragma once

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

struct GeluForward {
  static constexpr auto kOp = "bias_gelu_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef, MaybeTensorRef, MaybeTensorRef);
  TensorRef x, bias, out;
  MaybeTensorRef x_tangent, out_tangent;  // of the last rows; both or none

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// dx = grad * gelu'(x + bias), and its column sums.
struct GeluBackward {
  static constexpr auto kOp = "bias_gelu_backward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, MaybeTensorRef);
  TensorRef grad, x, bias, dx;
  MaybeTensorRef dbias;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct GeluJvp {
  static constexpr auto kOp = "bias_gelu_jvp";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef);
  TensorRef x_tangent, x, bias, out;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline void check_gelu_inputs(const char* op, TensorRef x, TensorRef bias,
                              at::DeviceType device) {
  check_first_rows(op, "x", x, device);
  check_vector(op, "bias", bias, x.sym_size(1), device);
}

inline WriteSet GeluForward::check(at::DeviceType device) const {
  check_gelu_inputs(kOp, x, bias, device);
  check_written_rows(kOp, "out", out, x, x.scalar_type(), device);
  TORCH_CHECK_VALUE(x_tangent.has_value() == out_tangent.has_value(), "sbrrt::", kOp,
                    ": x_tangent and out_tangent go together; pass both or none");
  Arguments written{{"out", out}}, read{{"x", x}, {"bias", bias}};
  if (x_tangent) {
    check_last_rows(kOp, "x_tangent", *x_tangent, x, device);
    check_written_rows(kOp, "out_tangent", *out_tangent, *x_tangent, x.scalar_type(), device);
    append(written, "out_tangent", out_tangent);
    append(read, "x_tangent", x_tangent);
  }
  return {kOp, std::move(written), read, {{"out", "x"}, {"out_tangent", "x_tangent"}}};
}

inline WriteSet GeluBackward::check(at::DeviceType device) const {
  check_gelu_inputs(kOp, x, bias, device);
  check_rows(kOp, "grad", grad, x.sym_size(0), x.sym_size(1), device);
  check_written_rows(kOp, "dx", dx, x, x.scalar_type(), device);
  check_parameter_gradient(kOp, "dbias", dbias, bias, device);
  Arguments written{{"dx", dx}};
  append(written, "dbias", dbias);
  return {kOp,
          std::move(written),
          {{"grad", grad}, {"x", x}, {"bias", bias}},
          {{"dx", "grad"}, {"dx", "x"}}};
}

inline WriteSet GeluJvp::check(at::DeviceType device) const {
  check_gelu_inputs(kOp, x, bias, device);
  check_rows(kOp, "x_tangent", x_tangent, x.sym_size(0), x.sym_size(1), device);
  check_written_rows(kOp, "out", out, x, x.scalar_type(), device);
  return {kOp,
          {{"out", out}},
          {{"x_tangent", x_tangent}, {"x", x}, {"bias", bias}},
          {{"out", "x_tangent"}, {"out", "x"}}};
}

}  // namespace sbrrt
