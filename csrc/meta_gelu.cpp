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
  gelu_write_set("bias_gelu_forward_into", x, bias, out, at::kMeta).count_change();
}

at::Tensor backward_into_meta(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
                              bool need_weight_grads, const at::Tensor& dx) {
  gelu_change_write_set("bias_gelu_backward_into", "grad", grad, x, bias, "dx", dx, at::kMeta)
      .count_change();
  const c10::SymInt size = need_weight_grads ? bias.sym_size(0) : c10::SymInt(0);
  return at::empty_symint({size}, bias.options());
}

void jvp_into_meta(const at::Tensor& x_tangent, const at::Tensor& x, const at::Tensor& bias,
                   const at::Tensor& out) {
  gelu_change_write_set("bias_gelu_jvp_into", "x_tangent", x_tangent, x, bias, "out", out,
                        at::kMeta)
      .count_change();
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
