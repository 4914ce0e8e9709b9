// dropout_add_layernorm on CUDA: from tensors to the launchers of layernorm.h.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "common/layernorm_checks.h"
#include "cuda/binding.h"
#include "cuda/layernorm.h"

namespace sbrrt::cuda::layernorm_binding {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using ParameterGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // bias, weight, shift

void check_kernel(const char* op, const ResidualTensors& t) {
  TORCH_CHECK_TYPE(t.residual.scalar_type() == at::kFloat ||
                       t.residual.scalar_type() == t.x.scalar_type(),
                   "sbrrt::", op, ": residual must have dtype float32 or that of x, ",
                   t.x.scalar_type(), ", got ", describe(t.residual));
  TORCH_CHECK_VALUE(t.x.size(1) <= kMaxLayerNormWidth, "sbrrt::", op,
                    ": rows may have at most ", kMaxLayerNormWidth, " features on CUDA, got ",
                    t.x.size(1));
}

// Dense forms of the tensors, which must live until the launch.
struct DenseInputs {
  at::Tensor x, residual, bias, weight, rng, offsets;
  ResidualParams params;

  DenseInputs(const ResidualTensors& t, const DropoutArguments& dropout)
      : x(with_dense_rows(t.x)),
        residual(with_dense_rows(t.residual)),
        bias(floats(t.bias)),
        weight(floats(t.weight)),
        rng(dropout.rng.contiguous()),
        offsets(dropout.offsets.contiguous()),
        params{x.size(0),
               static_cast<int>(x.size(1)),
               element_type(x),
               element_type(residual),
               const_rows(x),
               const_rows(residual),
               bias.const_data_ptr<float>(),
               dropout_params(dropout.p, rng, dropout.site, offsets)} {}
};

Launch launch_of(const char* op, const ResidualTensors& t, const DropoutArguments& dropout,
                 const at::Tensor& other) {
  check_kernel(op, t);
  return Launch(op, t.x, {t.bias, t.residual, t.weight, dropout.rng, dropout.offsets, other});
}

void forward_into(const char* op, const ResidualTensors& tensors, const at::Tensor& shift,
                  double eps, const DropoutArguments& dropout, const at::Tensor& out,
                  const OptionalTensor& low, const at::Tensor& mean, const at::Tensor& rstd) {
  const Launch launch = launch_of(op, tensors, dropout, out);
  const DenseInputs in(tensors, dropout);
  const at::Tensor dense_shift = floats(shift);
  launch(&layernorm_forward,
         LayerNormForwardParams{in.params, in.weight.const_data_ptr<float>(),
                                dense_shift.const_data_ptr<float>(), static_cast<float>(eps),
                                rows(out), optional_rows(low), mean.mutable_data_ptr<float>(),
                                rstd.mutable_data_ptr<float>()});
}

ParameterGradients backward_into(const char* op, const at::Tensor& grad,
                                 const OptionalTensor& product, const ResidualTensors& tensors,
                                 const at::Tensor& mean, const at::Tensor& rstd,
                                 const DropoutArguments& dropout, bool need_weight_grads,
                                 const at::Tensor& dx, const at::Tensor& dresidual) {
  const Launch launch = launch_of(op, tensors, dropout, grad);
  const DenseInputs in(tensors, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad.to(in.residual.scalar_type()));
  const at::Tensor dense_product =
      product ? with_dense_rows(product->to(in.x.scalar_type())) : at::Tensor();
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const int64_t width = in.x.size(1);
  const at::Tensor partial =
      empty_floats({need_weight_grads ? num_row_blocks(in.x.size(0)) : 0, 3 * width}, in.x);
  launch(&layernorm_backward,
         LayerNormBackwardParams{
             in.params, const_rows(dense_grad),
             product ? const_rows(dense_product) : ConstRows{nullptr, 0},
             in.weight.const_data_ptr<float>(), means.const_data_ptr<float>(),
             rstds.const_data_ptr<float>(), rows(dx), rows(dresidual),
             need_weight_grads ? partial.mutable_data_ptr<float>() : nullptr});
  if (!need_weight_grads) {
    return {no_gradient(tensors.bias), no_gradient(tensors.weight), no_gradient(tensors.weight)};
  }
  const at::Tensor sums = sums_of_blocks(launch, partial).view({3, width});
  return {sums[0].to(tensors.bias.scalar_type()), sums[1].to(tensors.weight.scalar_type()),
          sums[2].to(tensors.weight.scalar_type())};
}

void jvp_into(const char* op, const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
              const ResidualTensors& tensors, const at::Tensor& mean, const at::Tensor& rstd,
              const DropoutArguments& dropout, const at::Tensor& out, const OptionalTensor& low) {
  const Launch launch = launch_of(op, tensors, dropout, out);
  const DenseInputs in(tensors, dropout);
  const at::Tensor tx = with_dense_rows(x_tangent.to(in.x.scalar_type()));
  const at::Tensor tresidual = with_dense_rows(residual_tangent.to(in.residual.scalar_type()));
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  launch(&layernorm_jvp,
         LayerNormJvpParams{in.params, const_rows(tx), const_rows(tresidual),
                            in.weight.const_data_ptr<float>(), means.const_data_ptr<float>(),
                            rstds.const_data_ptr<float>(), rows(out), optional_rows(low)});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "dropout_add_layernorm_forward";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_forward(op, tensors, shift, eps, dropout, at::kCUDA);
  const at::Tensor out = at::empty(residual.sizes(), residual.options());
  const at::Tensor mean = empty_floats({x.size(0)}, x), rstd = at::empty_like(mean);
  forward_into(op, tensors, shift, eps, dropout, out, {}, mean, rstd);
  return {out, mean, rstd};
}

void checked_forward_into(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                          const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                          const at::Tensor& rng, int64_t site, const at::Tensor& offsets,
                          const at::Tensor& out, const OptionalTensor& low, const at::Tensor& mean,
                          const at::Tensor& rstd) {
  constexpr auto op = "dropout_add_layernorm_forward_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_forward_write_set(op, tensors, shift, eps, dropout, out, low,
                                                      mean, rstd, at::kCUDA);
  forward_into(op, tensors, shift, eps, dropout, out, low, mean, rstd);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& bias,
    const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, bool need_weight_grads) {
  constexpr auto op = "dropout_add_layernorm_backward";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_backward(op, grad, tensors, mean, rstd, dropout, at::kCUDA);
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  const at::Tensor dresidual = at::empty(residual.sizes(), residual.options());
  const auto [dbias, dweight, dshift] = backward_into(op, grad, {}, tensors, mean, rstd, dropout,
                                                      need_weight_grads, dx, dresidual);
  return {dx, dresidual, dbias, dweight, dshift};
}

ParameterGradients checked_backward_into(
    const at::Tensor& grad, const OptionalTensor& product, const at::Tensor& x,
    const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, bool need_weight_grads, const at::Tensor& dx,
    const at::Tensor& dresidual) {
  constexpr auto op = "dropout_add_layernorm_backward_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_backward_write_set(op, grad, product, tensors, mean, rstd,
                                                       dropout, dx, dresidual, at::kCUDA);
  ParameterGradients gradients = backward_into(op, grad, product, tensors, mean, rstd, dropout,
                                               need_weight_grads, dx, dresidual);
  writes.count_change();
  return gradients;
}

at::Tensor jvp(const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
               const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
               const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd, double p,
               const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "dropout_add_layernorm_jvp";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_jvp(op, x_tangent, residual_tangent, tensors, mean, rstd, dropout, at::kCUDA);
  const at::Tensor out = at::empty(residual.sizes(), residual.options());
  jvp_into(op, x_tangent, residual_tangent, tensors, mean, rstd, dropout, out, {});
  return out;
}

void checked_jvp_into(const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
                      const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                      const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                      double p, const at::Tensor& rng, int64_t site, const at::Tensor& offsets,
                      const at::Tensor& out, const OptionalTensor& low) {
  constexpr auto op = "dropout_add_layernorm_jvp_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_jvp_write_set(op, x_tangent, residual_tangent, tensors, mean,
                                                  rstd, dropout, out, low, at::kCUDA);
  jvp_into(op, x_tangent, residual_tangent, tensors, mean, rstd, dropout, out, low);
  writes.count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("dropout_add_layernorm_forward", &forward);
  m.impl("dropout_add_layernorm_backward", &backward);
  m.impl("dropout_add_layernorm_jvp", &jvp);
  m.impl("dropout_add_layernorm_forward_into", &checked_forward_into);
  m.impl("dropout_add_layernorm_backward_into", &checked_backward_into);
  m.impl("dropout_add_layernorm_jvp_into", &checked_jvp_into);
}

}  // namespace sbrrt::cuda::layernorm_binding
