// bias_gelu as one node of the autograd graph.
#include <torch/library.h>

#include <tuple>

#include "autograd/node.h"

namespace sbrrt::autograd::gelu {
namespace {

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                    const at::Tensor&, bool);

at::Tensor without_node(const at::Tensor& x, const at::Tensor& bias) {
  static const auto op = native_op<Forward>("sbrrt::bias_gelu_forward");
  return op.call(x, bias);
}

struct BiasGelu : torch::autograd::Function<BiasGelu> {
  enum Input : size_t { kBias = 1 };

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, bias});
    return without_node(x, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    static const auto op = native_op<Backward>("sbrrt::bias_gelu_backward");
    const auto saved = context->get_saved_variables();
    const bool needed = needs_weight_gradient(context, kBias);
    return once_differentiable([&]() -> variable_list {
      auto [dx, dbias] = op.call(grads[0], saved[0], saved[1], needed);
      if (!needed) dbias = at::Tensor();
      return {dx, dbias};
    });
  }
};

at::Tensor with_node(const at::Tensor& x, const at::Tensor& bias) {
  if (needs_node({x, bias})) return BiasGelu::apply(x, bias);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return without_node(x, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) { m.impl("bias_gelu", &without_node); }

TORCH_LIBRARY_IMPL(sbrrt, Autograd, m) { m.impl("bias_gelu", &with_node); }

}  // namespace sbrrt::autograd::gelu
