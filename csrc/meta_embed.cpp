// Results of embed for tracing and compilation; no memory is read.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "common/embed_checks.h"

namespace sbrrt::meta_embed {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward_meta(
    const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& types,
    const at::Tensor& word, const at::Tensor& position, const at::Tensor& type,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "embed_forward";
  check_embed(op, {ids, positions, types, word, position, type, weight}, p, rng, site, offsets,
              at::kMeta);
  check_vector(op, "shift", shift, word.sym_size(1), at::kMeta);
  check_epsilon(op, eps);
  const c10::SymInt num_tokens = ids.sym_size(0);
  const auto statistic = word.options().dtype(at::kFloat);
  return {at::empty_symint({num_tokens, word.sym_size(1)}, word.options()),
          at::empty_symint({num_tokens}, statistic), at::empty_symint({num_tokens}, statistic)};
}

// The whole table, or no rows of it.
at::Tensor table_meta(const at::Tensor& table, bool is_needed) {
  const c10::SymInt num_rows = is_needed ? table.sym_size(0) : c10::SymInt(0);
  return at::empty_symint({num_rows, table.sym_size(1)}, table.options());
}

at::Tensor vector_meta(const at::Tensor& weight, bool is_needed) {
  return at::empty_symint({is_needed ? weight.sym_size(0) : c10::SymInt(0)}, weight.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& grad, const at::Tensor& ids, const at::Tensor& positions,
    const at::Tensor& types, const at::Tensor& word, const at::Tensor& position,
    const at::Tensor& type, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, std::array<bool, 5> needs,
    const std::optional<at::Tensor>& order) {
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed_backward("embed_backward", grad, tensors, mean, rstd, p, rng, site, offsets,
                       at::kMeta);
  check_token_order("embed_backward", order, tensors, at::kMeta);
  return {table_meta(word, needs[0]), table_meta(position, needs[1]), table_meta(type, needs[2]),
          vector_meta(weight, needs[3]), vector_meta(weight, needs[4])};
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("embed_forward", &forward_meta);
  m.impl("embed_backward", &backward_meta);
}

}  // namespace sbrrt::meta_embed
