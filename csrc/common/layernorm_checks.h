// What dropout_add_layernorm's forward, backward and tangent check alike; all but the values of
// rng and offsets.
#pragma once

#include <optional>

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

inline void check_dense_statistics(const char* op, const at::Tensor& mean,
                                   const at::Tensor& rstd) {
  TORCH_CHECK_VALUE(mean.is_contiguous() && rstd.is_contiguous(), "sbrrt::", op,
                    ": mean and rstd are written and must be contiguous");
}

inline void check_layernorm_gradients(const char* op, const std::optional<at::Tensor>& product,
                                      const at::Tensor& dx, const at::Tensor& dresidual,
                                      const ResidualTensors& t, at::DeviceType device) {
  check_written_rows(op, "dx", dx, t.x, t.x.scalar_type(), device);
  check_written_rows(op, "dresidual", dresidual, t.residual, t.residual.scalar_type(), device);
  if (product) {
    check_rows(op, "product", *product, t.x.sym_size(0), t.x.sym_size(1), device);
  }
}

}  // namespace sbrrt
