// Results of dropout_add_layernorm for tracing and compilation; no memory is read.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "common/layernorm_checks.h"

namespace sbrrt::meta_layernorm {
namespace {

at::Tensor empty_as(const at::Tensor& tensor) {
  return at::empty_symint(tensor.sym_sizes(), tensor.options());
}

at::Tensor empty_parameter(const at::Tensor& parameter, bool is_needed) {
  return at::empty_symint({is_needed ? parameter.sym_size(0) : c10::SymInt(0)},
                          parameter.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_meta(
    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  check_layernorm_forward("dropout_add_layernorm_forward", {x, bias, residual, weight}, shift, eps,
                          {p, rng, site, offsets}, at::kMeta);
  const auto statistic = x.options().dtype(at::kFloat);
  return {empty_as(residual), at::empty_symint({x.sym_size(0)}, statistic),
          at::empty_symint({x.sym_size(0)}, statistic)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
    const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, bool need_weight_grads) {
  check_layernorm_backward("dropout_add_layernorm_backward", grad, {x, bias, residual, weight},
                           mean, rstd, {p, rng, site, offsets}, at::kMeta);
  return {empty_as(x), empty_as(residual), empty_parameter(bias, need_weight_grads),
          empty_parameter(weight, need_weight_grads), empty_parameter(weight, need_weight_grads)};
}

at::Tensor jvp_meta(const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
                    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                    const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                    double p, const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  check_layernorm_jvp("dropout_add_layernorm_jvp", x_tangent, residual_tangent,
                      {x, bias, residual, weight}, mean, rstd, {p, rng, site, offsets}, at::kMeta);
  return empty_as(residual);
}

void forward_into_meta(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                       const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                       const at::Tensor& rng, int64_t site, const at::Tensor& offsets,
                       const at::Tensor& out, const std::optional<at::Tensor>& low,
                       const at::Tensor& mean, const at::Tensor& rstd) {
  layernorm_forward_write_set("dropout_add_layernorm_forward_into", {x, bias, residual, weight},
                              shift, eps, {p, rng, site, offsets}, out, low, mean, rstd, at::kMeta)
      .count_change();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_into_meta(
    const at::Tensor& grad, const std::optional<at::Tensor>& product, const at::Tensor& x,
    const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, bool need_weight_grads, const at::Tensor& dx,
    const at::Tensor& dresidual) {
  layernorm_backward_write_set("dropout_add_layernorm_backward_into", grad, product,
                               {x, bias, residual, weight}, mean, rstd, {p, rng, site, offsets},
                               dx, dresidual, at::kMeta)
      .count_change();
  return {empty_parameter(bias, need_weight_grads), empty_parameter(weight, need_weight_grads),
          empty_parameter(weight, need_weight_grads)};
}

void jvp_into_meta(const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
                   const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                   const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                   double p, const at::Tensor& rng, int64_t site, const at::Tensor& offsets,
                   const at::Tensor& out, const std::optional<at::Tensor>& low) {
  layernorm_jvp_write_set("dropout_add_layernorm_jvp_into", x_tangent, residual_tangent,
                          {x, bias, residual, weight}, mean, rstd, {p, rng, site, offsets}, out,
                          low, at::kMeta)
      .count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("dropout_add_layernorm_forward", &forward_meta);
  m.impl("dropout_add_layernorm_backward", &backward_meta);
  m.impl("dropout_add_layernorm_jvp", &jvp_meta);
  m.impl("dropout_add_layernorm_forward_into", &forward_into_meta);
  m.impl("dropout_add_layernorm_backward_into", &backward_into_meta);
  m.impl("dropout_add_layernorm_jvp_into", &jvp_into_meta);
}

}  // namespace sbrrt::meta_layernorm
