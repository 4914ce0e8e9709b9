// attention as one node of the autograd graph.
#include <torch/library.h>

#include <tuple>

#include "autograd/node.h"

namespace sbrrt::autograd::attention {
namespace {

using Forward = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t,
    double, const at::Tensor&, int64_t, const at::Tensor&, int64_t);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, const at::Tensor&, int64_t, int64_t, double, const at::Tensor&, int64_t,
    const at::Tensor&, int64_t);

template <typename... Args>
auto forward_op(const Args&... args) {
  static const auto op = native_op<Forward>("sbrrt::attention_forward");
  return op.call(args...);
}

template <typename... Args>
auto backward_op(const Args&... args) {
  static const auto op = native_op<Backward>("sbrrt::attention_backward");
  return op.call(args...);
}

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads,
                            double p, const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                            int64_t max_positions) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [out, logsumexp] = forward_op(query, key, value, cu_seqlens, max_length, num_heads, p,
                                       rng, site, rows, max_positions);
    auto& numbers = context->saved_data;
    numbers["max_length"] = max_length;
    numbers["num_heads"] = num_heads;
    numbers["p"] = p;
    numbers["site"] = site;
    numbers["max_positions"] = max_positions;
    context->save_for_backward({query, key, value, out, logsumexp, cu_seqlens, rng, rows});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    auto& numbers = context->saved_data;
    return once_differentiable([&]() -> variable_list {
      auto [query, key, value] =
          backward_op(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], numbers["max_length"].toInt(),
                      numbers["num_heads"].toInt(), numbers["p"].toDouble(), s[6],
                      numbers["site"].toInt(), s[7], numbers["max_positions"].toInt());
      return {query, key, value, {}, {}, {}, {}, {}, {}, {}, {}};
    });
  }
};

at::Tensor without_node(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads,
                        double p, const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                        int64_t max_positions) {
  return std::get<0>(forward_op(query, key, value, cu_seqlens, max_length, num_heads, p, rng, site,
                                rows, max_positions));
}

at::Tensor with_node(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                     const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                     int64_t max_positions) {
  if (needs_node({query, key, value})) {
    return Attention::apply(query, key, value, cu_seqlens, max_length, num_heads, p, rng, site,
                            rows, max_positions);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return without_node(query, key, value, cu_seqlens, max_length, num_heads, p, rng, site, rows,
                      max_positions);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) { m.impl("attention", &without_node); }

TORCH_LIBRARY_IMPL(sbrrt, Autograd, m) { m.impl("attention", &with_node); }

}  // namespace sbrrt::autograd::attention
