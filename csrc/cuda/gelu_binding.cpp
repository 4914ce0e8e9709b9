// bias_gelu on CUDA: from tensors to the launchers of gelu.h.
#include <torch/library.h>

#include <tuple>

#include "common/gelu_checks.h"
#include "cuda/binding.h"
#include "cuda/gelu.h"

namespace sbrrt::cuda::gelu_binding {
namespace {

// All arguments are checked; `out` may be x.
void forward_into(const char* op, const at::Tensor& x, const at::Tensor& bias,
                  const at::Tensor& out) {
  const Launch launch(op, x, {bias, out});
  const at::Tensor dense = with_dense_rows(x), dense_bias = floats(bias);
  launch(&gelu_forward,
         GeluForwardParams{x.size(0), x.size(1), element_type(x), const_rows(dense),
                           dense_bias.const_data_ptr<float>(), rows(out)});
}

// out = change * slope; `out` may be change. Returns the column sums, or nothing [0].
at::Tensor change_into(const char* op, const at::Tensor& change, const at::Tensor& x,
                       const at::Tensor& bias, bool need_sums, const at::Tensor& out) {
  const Launch launch(op, x, {change, bias, out});
  const at::Tensor dense = with_dense_rows(x), dense_bias = floats(bias);
  const at::Tensor dense_change = with_dense_rows(change.to(x.scalar_type()));
  const at::Tensor partial =
      empty_floats({need_sums ? gelu_row_blocks(x.size(0)) : 0, x.size(1)}, x);
  launch(&gelu_change,
         GeluChangeParams{x.size(0), x.size(1), element_type(x), const_rows(dense),
                          const_rows(dense_change), dense_bias.const_data_ptr<float>(), rows(out),
                          need_sums ? partial.mutable_data_ptr<float>() : nullptr});
  if (!need_sums) return no_gradient(bias);
  return sums_of_blocks(launch, partial).to(bias.scalar_type());
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& bias) {
  constexpr auto op = "bias_gelu_forward";
  check_gelu(op, x, bias, at::kCUDA);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  forward_into(op, x, bias, out);
  return out;
}

void checked_forward_into(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& out) {
  constexpr auto op = "bias_gelu_forward_into";
  const WriteSet writes = gelu_write_set(op, x, bias, out, at::kCUDA);
  forward_into(op, x, bias, out);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                            const at::Tensor& bias, bool need_weight_grads) {
  constexpr auto op = "bias_gelu_backward";
  check_gelu_change(op, "grad", grad, x, bias, at::kCUDA);
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  return {dx, change_into(op, grad, x, bias, need_weight_grads, dx)};
}

at::Tensor backward_into(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
                         bool need_weight_grads, const at::Tensor& dx) {
  constexpr auto op = "bias_gelu_backward_into";
  const WriteSet writes =
      gelu_change_write_set(op, "grad", grad, x, bias, "dx", dx, at::kCUDA);
  const at::Tensor dbias = change_into(op, grad, x, bias, need_weight_grads, dx);
  writes.count_change();
  return dbias;
}

at::Tensor jvp(const at::Tensor& x_tangent, const at::Tensor& x, const at::Tensor& bias) {
  constexpr auto op = "bias_gelu_jvp";
  check_gelu_change(op, "x_tangent", x_tangent, x, bias, at::kCUDA);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  change_into(op, x_tangent, x, bias, false, out);
  return out;
}

void jvp_into(const at::Tensor& x_tangent, const at::Tensor& x, const at::Tensor& bias,
              const at::Tensor& out) {
  constexpr auto op = "bias_gelu_jvp_into";
  const WriteSet writes =
      gelu_change_write_set(op, "x_tangent", x_tangent, x, bias, "out", out, at::kCUDA);
  change_into(op, x_tangent, x, bias, false, out);
  writes.count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("bias_gelu_forward", &forward);
  m.impl("bias_gelu_backward", &backward);
  m.impl("bias_gelu_jvp", &jvp);
  m.impl("bias_gelu_forward_into", &checked_forward_into);
  m.impl("bias_gelu_backward_into", &backward_into);
  m.impl("bias_gelu_jvp_into", &jvp_into);
}

}  // namespace sbrrt::cuda::gelu_binding
