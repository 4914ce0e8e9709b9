// What dropout_add_layernorm's forward, backward and tangent check alike; all but the values of
// rng and offsets.
#pragma once

#include <optional>
#include <utility>

#include "common/row_checks.h"

namespace sbrrt {

struct ResidualTensors {
  const at::Tensor &x, &bias, &residual, &weight;
};

struct DropoutArguments {
  double p;
  const at::Tensor& rng;
  int64_t site;
  const at::Tensor& offsets;
};

inline void check_residual_sum(const char* op, const ResidualTensors& t,
                               const DropoutArguments& dropout, at::DeviceType device) {
  check_first_rows(op, "x", t.x, device);
  const c10::SymInt num_rows = t.x.sym_size(0), width = t.x.sym_size(1);
  check_vector(op, "bias", t.bias, width, device);
  check_rows(op, "residual", t.residual, num_rows, width, device);
  check_vector(op, "weight", t.weight, width, device);
  check_dropout(op, dropout.p, dropout.rng, dropout.site, dropout.offsets, num_rows, device);
}

inline void check_layernorm_forward(const char* op, const ResidualTensors& t,
                                    const at::Tensor& shift, double eps,
                                    const DropoutArguments& dropout, at::DeviceType device) {
  check_residual_sum(op, t, dropout, device);
  check_vector(op, "shift", shift, t.x.sym_size(1), device);
  check_epsilon(op, eps);
}

inline void check_layernorm_statistics(const char* op, const at::Tensor& mean,
                                       const at::Tensor& rstd, const c10::SymInt& num_rows,
                                       at::DeviceType device) {
  check_statistic(op, "mean", mean, num_rows, device);
  check_statistic(op, "rstd", rstd, num_rows, device);
}

inline void check_layernorm_backward(const char* op, const at::Tensor& grad,
                                     const ResidualTensors& t, const at::Tensor& mean,
                                     const at::Tensor& rstd, const DropoutArguments& dropout,
                                     at::DeviceType device) {
  check_residual_sum(op, t, dropout, device);
  const c10::SymInt num_rows = t.x.sym_size(0);
  check_rows(op, "grad", grad, num_rows, t.x.sym_size(1), device);
  check_layernorm_statistics(op, mean, rstd, num_rows, device);
}

inline void check_layernorm_jvp(const char* op, const at::Tensor& x_tangent,
                                const at::Tensor& residual_tangent, const ResidualTensors& t,
                                const at::Tensor& mean, const at::Tensor& rstd,
                                const DropoutArguments& dropout, at::DeviceType device) {
  check_residual_sum(op, t, dropout, device);
  const c10::SymInt num_rows = t.x.sym_size(0), width = t.x.sym_size(1);
  check_rows(op, "x_tangent", x_tangent, num_rows, width, device);
  check_rows(op, "residual_tangent", residual_tangent, num_rows, width, device);
  check_layernorm_statistics(op, mean, rstd, num_rows, device);
}

inline void check_layernorm_outputs(const char* op, const at::Tensor& out,
                                    const std::optional<at::Tensor>& low,
                                    const at::Tensor& residual, at::DeviceType device) {
  check_written_rows(op, "out", out, residual, residual.scalar_type(), device);
  if (low) check_written_rows(op, "low", *low, residual, at::kBFloat16, device);
}

inline Arguments layernorm_read(const ResidualTensors& t, const DropoutArguments& dropout) {
  return {{"x", t.x},           {"bias", t.bias},      {"residual", t.residual},
          {"weight", t.weight}, {"rng", dropout.rng}, {"offsets", dropout.offsets}};
}

inline WriteSet layernorm_forward_write_set(const char* op, const ResidualTensors& t,
                                            const at::Tensor& shift, double eps,
                                            const DropoutArguments& dropout, const at::Tensor& out,
                                            const std::optional<at::Tensor>& low,
                                            const at::Tensor& mean, const at::Tensor& rstd,
                                            at::DeviceType device) {
  check_layernorm_forward(op, t, shift, eps, dropout, device);
  check_layernorm_outputs(op, out, low, t.residual, device);
  check_layernorm_statistics(op, mean, rstd, t.x.sym_size(0), device);
  TORCH_CHECK_VALUE(mean.is_contiguous() && rstd.is_contiguous(), "sbrrt::", op,
                    ": mean and rstd are written and must be contiguous");
  Arguments written{{"out", out}, {"mean", mean}, {"rstd", rstd}};
  append(written, "low", low);
  Arguments read = layernorm_read(t, dropout);
  read.emplace_back("shift", shift);
  return {op, std::move(written), read};
}

// dresidual may be exactly grad.
inline WriteSet layernorm_backward_write_set(
    const char* op, const at::Tensor& grad, const std::optional<at::Tensor>& product,
    const ResidualTensors& t, const at::Tensor& mean, const at::Tensor& rstd,
    const DropoutArguments& dropout, const at::Tensor& dx, const at::Tensor& dresidual,
    at::DeviceType device) {
  check_layernorm_backward(op, grad, t, mean, rstd, dropout, device);
  check_written_rows(op, "dx", dx, t.x, t.x.scalar_type(), device);
  check_written_rows(op, "dresidual", dresidual, t.residual, t.residual.scalar_type(), device);
  if (product) check_rows(op, "product", *product, t.x.sym_size(0), t.x.sym_size(1), device);
  Arguments read = layernorm_read(t, dropout);
  for (const Argument& argument : {Argument("grad", grad), {"mean", mean}, {"rstd", rstd}}) {
    read.push_back(argument);
  }
  append(read, "product", product);
  return {op, {{"dx", dx}, {"dresidual", dresidual}}, read, {{"dresidual", "grad"}}};
}

inline WriteSet layernorm_jvp_write_set(const char* op, const at::Tensor& x_tangent,
                                        const at::Tensor& residual_tangent,
                                        const ResidualTensors& t, const at::Tensor& mean,
                                        const at::Tensor& rstd, const DropoutArguments& dropout,
                                        const at::Tensor& out,
                                        const std::optional<at::Tensor>& low,
                                        at::DeviceType device) {
  check_layernorm_jvp(op, x_tangent, residual_tangent, t, mean, rstd, dropout, device);
  check_layernorm_outputs(op, out, low, t.residual, device);
  Arguments written{{"out", out}}, read = layernorm_read(t, dropout);
  append(written, "low", low);
  for (const Argument& argument : {Argument("x_tangent", x_tangent),
                                   {"residual_tangent", residual_tangent},
                                   {"mean", mean},
                                   {"rstd", rstd}}) {
    read.push_back(argument);
  }
  return {op, std::move(written), read};
}

}  // namespace sbrrt
