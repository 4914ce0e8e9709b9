// embed as one node of the autograd graph.
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "autograd/node.h"

namespace sbrrt::autograd::embed {
namespace {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, const at::Tensor&, const at::Tensor&, double, double, const at::Tensor&,
    int64_t, const at::Tensor&);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    double, const at::Tensor&, int64_t, const at::Tensor&, std::array<bool, 5>,
    const std::optional<at::Tensor>&);

template <typename... Args>
auto forward_op(const Args&... args) {
  static const auto op = native_op<Forward>("sbrrt::embed_forward");
  return op.call(args...);
}

template <typename... Args>
auto backward_op(const Args&... args) {
  static const auto op = native_op<Backward>("sbrrt::embed_backward");
  return op.call(args...);
}

struct Embed : torch::autograd::Function<Embed> {
  // The inputs that have a gradient: word, position, type, weight and shift.
  static constexpr size_t kFirst = 3, kNumGradients = 5;

  static at::Tensor forward(AutogradContext* context, const at::Tensor& ids,
                            const at::Tensor& positions, const at::Tensor& types,
                            const at::Tensor& word, const at::Tensor& position,
                            const at::Tensor& type, const at::Tensor& weight,
                            const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
                            int64_t site, const at::Tensor& offsets) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [y, mean, rstd] = forward_op(ids, positions, types, word, position, type, weight, shift,
                                      eps, p, rng, site, offsets);
    context->saved_data["p"] = p;
    context->saved_data["site"] = site;
    context->save_for_backward(
        {ids, positions, types, word, position, type, weight, mean, rstd, rng, offsets});
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    const double p = context->saved_data["p"].toDouble();
    const int64_t site = context->saved_data["site"].toInt();
    std::array<bool, kNumGradients> needs;
    for (size_t i = 0; i < kNumGradients; ++i) needs[i] = needs_weight_gradient(context, kFirst + i);
    return once_differentiable([&]() -> variable_list {
      auto [word, position, type, weight, shift] =
          backward_op(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], p, s[9],
                      site, s[10], needs, std::optional<at::Tensor>());
      variable_list result{{}, {}, {}, word, position, type, weight, shift, {}, {}, {}, {}, {}};
      for (size_t i = 0; i < kNumGradients; ++i) {
        if (!needs[i]) result[kFirst + i] = at::Tensor();
      }
      return result;
    });
  }
};

at::Tensor without_node(const at::Tensor& ids, const at::Tensor& positions,
                        const at::Tensor& types, const at::Tensor& word,
                        const at::Tensor& position, const at::Tensor& type,
                        const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                        const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  return std::get<0>(forward_op(ids, positions, types, word, position, type, weight, shift, eps, p,
                                rng, site, offsets));
}

at::Tensor with_node(const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& types,
                     const at::Tensor& word, const at::Tensor& position, const at::Tensor& type,
                     const at::Tensor& weight, const at::Tensor& shift, double eps, double p,
                     const at::Tensor& rng, int64_t site, const at::Tensor& offsets) {
  if (needs_node({word, position, type, weight, shift})) {
    return Embed::apply(ids, positions, types, word, position, type, weight, shift, eps, p, rng,
                        site, offsets);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return without_node(ids, positions, types, word, position, type, weight, shift, eps, p, rng,
                      site, offsets);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) { m.impl("embed", &without_node); }

TORCH_LIBRARY_IMPL(sbrrt, Autograd, m) { m.impl("embed", &with_node); }

}  // namespace sbrrt::autograd::embed
