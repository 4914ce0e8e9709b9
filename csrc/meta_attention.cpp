// Shapes and dtypes of attention's results; no memory is read.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "common/attention_checks.h"

namespace sbrrt::meta_attention {
namespace {

using Two = std::tuple<at::Tensor, at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor empty_like_query(const at::Tensor& query) {
  return at::empty_symint(query.sym_sizes(), query.options());
}

Two forward_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                 const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                 int64_t max_positions) {
  constexpr auto op = "attention_forward";
  check_attention(op,
                  {query, key, value, cu_seqlens, max_length, num_heads, p, rng, site, rows,
                   max_positions},
                  at::kMeta);
  return {empty_like_query(query), at::empty_symint({query.sym_size(0), num_heads},
                                                    query.options().dtype(at::kFloat))};
}

Three backward_meta(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp,
                    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                    const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                    int64_t max_positions) {
  constexpr auto op = "attention_backward";
  const AttentionArguments arguments{query, key, value, cu_seqlens, max_length,   num_heads,
                                     p,     rng, site,  rows,       max_positions};
  check_attention_backward(op, {grad, out, logsumexp}, arguments, at::kMeta);
  return {empty_like_query(query), empty_like_query(query), empty_like_query(query)};
}

at::Tensor jvp_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const at::Tensor& query_tangent, const at::Tensor& key_tangent,
                    const at::Tensor& value_tangent, const at::Tensor& logsumexp,
                    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                    const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                    int64_t max_positions) {
  constexpr auto op = "attention_jvp";
  const AttentionArguments arguments{query, key, value, cu_seqlens, max_length,   num_heads,
                                     p,     rng, site,  rows,       max_positions};
  check_attention_jvp(op, {query_tangent, key_tangent, value_tangent, logsumexp}, arguments,
                      at::kMeta);
  return empty_like_query(query);
}

void forward_into_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads,
                       double p, const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                       int64_t max_positions, const at::Tensor& out, const at::Tensor& logsumexp) {
  const AttentionArguments arguments{query, key, value, cu_seqlens, max_length,   num_heads,
                                     p,     rng, site,  rows,       max_positions};
  attention_forward_write_set("attention_forward_into", arguments, out, logsumexp, at::kMeta)
      .count_change();
}

void backward_into_meta(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                        const at::Tensor& value, const at::Tensor& out,
                        const at::Tensor& logsumexp, const at::Tensor& cu_seqlens,
                        int64_t max_length, int64_t num_heads, double p, const at::Tensor& rng,
                        int64_t site, const at::Tensor& rows, int64_t max_positions,
                        const at::Tensor& dquery, const at::Tensor& dkey,
                        const at::Tensor& dvalue) {
  const AttentionArguments arguments{query, key, value, cu_seqlens, max_length,   num_heads,
                                     p,     rng, site,  rows,       max_positions};
  attention_backward_write_set("attention_backward_into", {grad, out, logsumexp}, arguments,
                               {dquery, dkey, dvalue}, at::kMeta)
      .count_change();
}

void jvp_into_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& query_tangent, const at::Tensor& key_tangent,
                   const at::Tensor& value_tangent, const at::Tensor& logsumexp,
                   const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                   const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                   int64_t max_positions, const at::Tensor& out) {
  const AttentionArguments arguments{query, key, value, cu_seqlens, max_length,   num_heads,
                                     p,     rng, site,  rows,       max_positions};
  attention_jvp_write_set("attention_jvp_into",
                          {query_tangent, key_tangent, value_tangent, logsumexp}, arguments, out,
                          at::kMeta)
      .count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("attention_forward", &forward_meta);
  m.impl("attention_backward", &backward_meta);
  m.impl("attention_jvp", &jvp_meta);
  m.impl("attention_forward_into", &forward_into_meta);
  m.impl("attention_backward_into", &backward_into_meta);
  m.impl("attention_jvp_into", &jvp_into_meta);
}

}  // namespace sbrrt::meta_attention
