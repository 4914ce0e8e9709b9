// Results of bias_gelu for tracing and compilation; no memory is read.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "common/gelu_checks.h"

namespace sbrrt::meta_gelu {
namespace {

at::Tensor forward_meta(const at::Tensor& x, const at::Tensor& bias) {
  check_gelu("bias_gelu_forward", x, bias, at::kMeta);
  return at::empty_symint(x.sym_sizes(), x.options());
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const at::Tensor& grad, const at::Tensor& x,
                                                 const at::Tensor& bias, bool need_weight_grads) {
  check_gelu_change("bias_gelu_backward", "grad", grad, x, bias, at::kMeta);
  const c10::SymInt size = need_weight_grads ? bias.sym_size(0) : c10::SymInt(0);
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint({size}, bias.options())};
}

at::Tensor jvp_meta(const at::Tensor& x_tangent, const at::Tensor& x, const at::Tensor& bias) {
  check_gelu_change("bias_gelu_jvp", "x_tangent", x_tangent, x, bias, at::kMeta);
  return at::empty_symint(x.sym_sizes(), x.options());
}

void forward_into_meta(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& out) {
  constexpr auto op = "bias_gelu_forward_into";
  check_gelu(op, x, bias, at::kMeta);
  check_written_rows(op, "out", out, x, x.scalar_type(), at::kMeta);
}

at::Tensor backward_into_meta(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
                              bool need_weight_grads, const at::Tensor& dx) {
  constexpr auto op = "bias_gelu_backward_into";
  check_gelu_change(op, "grad", grad, x, bias, at::kMeta);
  check_written_rows(op, "dx", dx, x, x.scalar_type(), at::kMeta);
  const c10::SymInt size = need_weight_grads ? bias.sym_size(0) : c10::SymInt(0);
  return at::empty_symint({size}, bias.options());
}

void jvp_into_meta(const at::Tensor& x_tangent, const at::Tensor& x, const at::Tensor& bias,
                   const at::Tensor& out) {
  constexpr auto op = "bias_gelu_jvp_into";
  check_gelu_change(op, "x_tangent", x_tangent, x, bias, at::kMeta);
  check_written_rows(op, "out", out, x, x.scalar_type(), at::kMeta);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("bias_gelu_forward", &forward_meta);
  m.impl("bias_gelu_backward", &backward_meta);
  m.impl("bias_gelu_jvp", &jvp_meta);
  m.impl("bias_gelu_forward_into", &forward_into_meta);
  m.impl("bias_gelu_backward_into", &backward_into_meta);
  m.impl("bias_gelu_jvp_into", &jvp_into_meta);
}

}  // namespace sbrrt::meta_gelu
