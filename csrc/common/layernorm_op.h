// dropout_add_layernorm's forward, backward and JVP as ops (common/op.h).
#pragma once

#include <utility>

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

// Of y = LN(residual + dropout(x + bias)) * weight + shift.
struct ResidualTensors {
  TensorRef x, bias, residual, weight;
};

struct LayerNormForward {
  static constexpr auto kOp = "dropout_add_layernorm_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, double, double,
                         TensorRef, int64_t, TensorRef, TensorRef, MaybeTensorRef, TensorRef,
                         TensorRef);
  ResidualTensors in;
  TensorRef shift;
  double eps;
  DropoutArguments dropout;
  TensorRef out;
  MaybeTensorRef low;  // a bfloat16 copy of out
  StatisticsTensors statistics;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// The gradient of y is grad + product, a matrix product's result.
struct LayerNormBackward {
  static constexpr auto kOp = "dropout_add_layernorm_backward";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, TensorRef, int64_t, TensorRef, TensorRef,
                         TensorRef, MaybeTensorRef, MaybeTensorRef, MaybeTensorRef);
  TensorRef grad;
  MaybeTensorRef product;
  ResidualTensors in;
  StatisticsTensors statistics;
  DropoutArguments dropout;
  TensorRef dx, dresidual;
  MaybeTensorRef dbias, dweight, dshift;  // all or none

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct LayerNormJvp {
  static constexpr auto kOp = "dropout_add_layernorm_jvp";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, TensorRef, int64_t, TensorRef, TensorRef,
                         MaybeTensorRef);
  TensorRef x_tangent, residual_tangent;
  ResidualTensors in;
  StatisticsTensors statistics;
  DropoutArguments dropout;
  TensorRef out;
  MaybeTensorRef low;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline void check_residual_sum(const char* op, const ResidualTensors& t,
                               const DropoutArguments& dropout, at::DeviceType device) {
  check_first_rows(op, "x", t.x, device);
  const c10::SymInt num_rows = t.x.sym_size(0), width = t.x.sym_size(1);
  check_vector(op, "bias", t.bias, width, device);
  check_rows(op, "residual", t.residual, num_rows, width, device);
  check_vector(op, "weight", t.weight, width, device);
  check_dropout(op, dropout, num_rows, device);
}

inline void check_layernorm_outputs(const char* op, TensorRef out, MaybeTensorRef low,
                                    TensorRef residual, at::DeviceType device) {
  check_written_rows(op, "out", out, residual, residual.scalar_type(), device);
  if (low) check_written_rows(op, "low", *low, residual, at::kBFloat16, device);
}

inline Arguments layernorm_read(const ResidualTensors& t, const DropoutArguments& dropout) {
  return {{"x", t.x},           {"bias", t.bias},      {"residual", t.residual},
          {"weight", t.weight}, {"rng", dropout.rng}, {"offsets", dropout.offsets}};
}

inline WriteSet LayerNormForward::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  check_vector(kOp, "shift", shift, in.x.sym_size(1), device);
  check_epsilon(kOp, eps);
  check_layernorm_outputs(kOp, out, low, in.residual, device);
  check_written_statistics(kOp, statistics, in.x.sym_size(0), device);
  Arguments written{{"out", out}, {"mean", statistics.mean}, {"rstd", statistics.rstd}};
  append(written, "low", low);
  Arguments read = layernorm_read(in, dropout);
  read.emplace_back("shift", shift);
  return {kOp, std::move(written), read};
}

// dresidual may be exactly grad.
inline WriteSet LayerNormBackward::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  const c10::SymInt num_rows = in.x.sym_size(0), width = in.x.sym_size(1);
  check_rows(kOp, "grad", grad, num_rows, width, device);
  check_statistics(kOp, statistics, num_rows, device);
  if (product) check_rows(kOp, "product", *product, num_rows, width, device);
  check_written_rows(kOp, "dx", dx, in.x, in.x.scalar_type(), device);
  check_written_rows(kOp, "dresidual", dresidual, in.residual, in.residual.scalar_type(), device);
  TORCH_CHECK_VALUE(dbias.has_value() == dweight.has_value() &&
                        dweight.has_value() == dshift.has_value(),
                    "sbrrt::", kOp, ": dbias, dweight and dshift are computed together; pass all "
                    "of them or none");
  check_parameter_gradient(kOp, "dbias", dbias, in.bias, device);
  check_parameter_gradient(kOp, "dweight", dweight, in.weight, device);
  check_parameter_gradient(kOp, "dshift", dshift, in.weight, device);
  Arguments written{{"dx", dx}, {"dresidual", dresidual}};
  append(written, "dbias", dbias);
  append(written, "dweight", dweight);
  append(written, "dshift", dshift);
  Arguments read = layernorm_read(in, dropout);
  append(read, {{"grad", grad}, {"mean", statistics.mean}, {"rstd", statistics.rstd}});
  append(read, "product", product);
  return {kOp, std::move(written), read, {{"dresidual", "grad"}}};
}

inline WriteSet LayerNormJvp::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  const c10::SymInt num_rows = in.x.sym_size(0), width = in.x.sym_size(1);
  check_rows(kOp, "x_tangent", x_tangent, num_rows, width, device);
  check_rows(kOp, "residual_tangent", residual_tangent, num_rows, width, device);
  check_statistics(kOp, statistics, num_rows, device);
  check_layernorm_outputs(kOp, out, low, in.residual, device);
  Arguments written{{"out", out}}, read = layernorm_read(in, dropout);
  append(written, "low", low);
  append(read, {{"x_tangent", x_tangent},
                {"residual_tangent", residual_tangent},
                {"mean", statistics.mean},
                {"rstd", statistics.rstd}});
  return {kOp, std::move(written), read};
}

}  // namespace sbrrt
