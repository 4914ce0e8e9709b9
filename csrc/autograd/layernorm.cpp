// dropout_add_layernorm as one node of the autograd graph.
#include <torch/library.h>

#include <tuple>

#include "autograd/node.h"

namespace sbrrt::autograd::layernorm {
namespace {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    double, double, const at::Tensor&, int64_t, const at::Tensor&);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, const at::Tensor&, double, const at::Tensor&, int64_t, const at::Tensor&,
    bool);

template <typename... Args>
auto forward_op(const Args&... args) {
  static const auto op = native_op<Forward>("sbrrt::dropout_add_layernorm_forward");
  return op.call(args...);
}

template <typename... Args>
auto backward_op(const Args&... args) {
  static const auto op = native_op<Backward>("sbrrt::dropout_add_layernorm_backward");
  return op.call(args...);
}

struct DropoutAddLayerNorm : torch::autograd::Function<DropoutAddLayerNorm> {
  enum Input : size_t { kBias = 1, kWeight = 3, kShift = 4 };

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& bias,
                            const at::Tensor& residual, const at::Tensor& weight,
                            const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
                            int64_t site, const at::Tensor& offsets) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [y, mean, rstd] =
        forward_op(x, bias, residual, weight, shift, eps, p, rng, site, offsets);
    context->saved_data["p"] = p;
    context->saved_data["site"] = site;
    context->save_for_backward({x, bias, residual, weight, mean, rstd, rng, offsets});
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const double p = context->saved_data["p"].toDouble();
    const int64_t site = context->saved_data["site"].toInt();
    const bool needed = needs_weight_gradient(context, kBias) ||
                        needs_weight_gradient(context, kWeight) ||
                        needs_weight_gradient(context, kShift);
    return once_differentiable([&]() -> variable_list {
      auto [dx, dresidual, dbias, dweight, dshift] =
          backward_op(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], p,
                      saved[6], site, saved[7], needed);
      if (!needed) dbias = dweight = dshift = at::Tensor();
      return {dx, dbias, dresidual, dweight, dshift, {}, {}, {}, {}, {}};
    });
  }
};

at::Tensor without_node(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                        const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                        const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  return std::get<0>(forward_op(x, bias, residual, weight, shift, eps, p, rng, site, offsets));
}

at::Tensor with_node(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
                     const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                     const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  if (needs_node({x, bias, residual, weight, shift})) {
    return DropoutAddLayerNorm::apply(x, bias, residual, weight, shift, eps, p, rng, site,
                                      offsets);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return without_node(x, bias, residual, weight, shift, eps, p, rng, site, offsets);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) {
  m.impl("dropout_add_layernorm", &without_node);
}

TORCH_LIBRARY_IMPL(sbrrt, Autograd, m) { m.impl("dropout_add_layernorm", &with_node); }

}  // namespace sbrrt::autograd::layernorm
