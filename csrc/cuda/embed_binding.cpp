// embed on CUDA: from tensors to the launchers of embed.h. An index outside its table makes the
// row NaN, since the values of indices cannot be read here.
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "common/embed_checks.h"
#include "cuda/binding.h"
#include "cuda/embed.h"

namespace sbrrt::cuda::embed_binding {
namespace {

void check_kernel(const char* op, const EmbedTensors& t) {
  TORCH_CHECK_TYPE(t.position.scalar_type() == t.word.scalar_type() &&
                       t.type.scalar_type() == t.word.scalar_type(),
                   "sbrrt::", op, ": word, position and type must have one dtype on CUDA, got ",
                   t.word.scalar_type(), ", ", t.position.scalar_type(), " and ",
                   t.type.scalar_type());
  TORCH_CHECK_VALUE(t.word.size(1) <= kMaxEmbedWidth, "sbrrt::", op, ": rows may have at most ",
                    kMaxEmbedWidth, " features on CUDA, got ", t.word.size(1));
}

// Dense forms of the tensors, which must live until the launch.
struct DenseInputs {
  std::array<at::Tensor, 3> indices, tables;
  at::Tensor weight, rng, offsets;
  EmbedParams params;

  DenseInputs(const EmbedTensors& t, double p, const at::Tensor& rng_, int64_t site,
              const at::Tensor& offsets_)
      : indices{t.ids.contiguous(), t.positions.contiguous(), t.types.contiguous()},
        tables{with_dense_rows(t.word), with_dense_rows(t.position), with_dense_rows(t.type)},
        weight(floats(t.weight)),
        rng(rng_.contiguous()),
        offsets(offsets_.contiguous()),
        params{t.ids.size(0), static_cast<int>(t.word.size(1)), element_type(t.word), {},
               dropout_params(p, rng, site, offsets)} {
    for (int i = 0; i < 3; ++i) {
      params.tables[i] = {const_rows(tables[i]), tables[i].size(0),
                          indices[i].const_data_ptr<int64_t>()};
    }
  }
};

Launch launch_of(const char* op, const EmbedTensors& t, const at::Tensor& rng,
                 const at::Tensor& offsets, const at::Tensor& other) {
  check_kernel(op, t);
  return Launch(op, t.word, {t.ids, t.positions, t.types, t.position, t.type, t.weight, rng,
                             offsets, other});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& types,
    const at::Tensor& word, const at::Tensor& position, const at::Tensor& type,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "embed_forward";
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed(op, tensors, p, rng, site, offsets, at::kCUDA);
  check_vector(op, "shift", shift, word.size(1), at::kCUDA);
  check_epsilon(op, eps);
  const Launch launch = launch_of(op, tensors, rng, offsets, shift);
  const DenseInputs in(tensors, p, rng, site, offsets);
  const at::Tensor dense_shift = floats(shift);
  const at::Tensor out = at::empty({ids.size(0), word.size(1)}, word.options());
  const at::Tensor mean = empty_floats({ids.size(0)}, word), rstd = at::empty_like(mean);
  launch(&embed_forward,
         EmbedForwardParams{in.params, in.weight.const_data_ptr<float>(),
                            dense_shift.const_data_ptr<float>(), static_cast<float>(eps),
                            rows(out), mean.mutable_data_ptr<float>(),
                            rstd.mutable_data_ptr<float>()});
  return {out, mean, rstd};
}

// Gradients of the tables from those of the rows that tokens read of them, ds [num_tokens, width].
std::array<at::Tensor, 3> table_gradients(const Launch& launch, const DenseInputs& in,
                                          const at::Tensor& ds,
                                          const std::optional<at::Tensor>& order,
                                          const std::array<bool, 5>& needs) {
  std::array<at::Tensor, 3> results, orders;
  const int64_t num_chunks = num_token_chunks(in.params.num_tokens);
  const at::Tensor partial = at::empty({3, num_chunks, 2, in.params.width}, ds.options());
  EmbedTablesParams params{in.params.num_tokens,        in.params.width,
                           in.params.dtype,             ds.const_data_ptr<float>(),
                           partial.mutable_data_ptr<float>(), {}};
  bool is_any_needed = false;
  for (int i = 0; i < 3; ++i) {
    const at::Tensor& table = in.tables[i];
    const int64_t num_rows = needs[i] ? table.size(0) : 0;
    const bool starts_as_zeros = needs_zeros(in.params.num_tokens, num_rows);
    results[i] = starts_as_zeros ? at::zeros({num_rows, table.size(1)}, table.options())
                                 : at::empty({num_rows, table.size(1)}, table.options());
    if (!needs[i]) continue;
    is_any_needed = true;
    orders[i] = order ? order->select(0, i).contiguous()
                      : at::argsort(in.indices[i], /*stable=*/true, /*dim=*/0);
    params.tables[i] = {in.params.tables[i].indices, orders[i].const_data_ptr<int64_t>(), num_rows,
                        results[i].mutable_data_ptr()};
  }
  if (is_any_needed) launch(&embed_tables, params);
  return results;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& ids, const at::Tensor& positions,
    const at::Tensor& types, const at::Tensor& word, const at::Tensor& position,
    const at::Tensor& type, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, std::array<bool, 5> needs,
    const std::optional<at::Tensor>& order) {
  constexpr auto op = "embed_backward";
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed_backward(op, grad, tensors, mean, rstd, p, rng, site, offsets, at::kCUDA);
  check_token_order(op, order, tensors, at::kCUDA);
  const Launch launch = launch_of(op, tensors, rng, offsets, grad);
  const DenseInputs in(tensors, p, rng, site, offsets);
  const at::Tensor dense_grad = with_dense_rows(grad.to(word.scalar_type()));
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const int64_t num_tokens = ids.size(0), width = word.size(1);
  const at::Tensor ds = empty_floats({num_tokens, width}, word);
  const at::Tensor partial = empty_floats({num_row_blocks(num_tokens), 2 * width}, word);
  launch(&embed_backward,
         EmbedBackwardParams{in.params, const_rows(dense_grad), in.weight.const_data_ptr<float>(),
                             means.const_data_ptr<float>(), rstds.const_data_ptr<float>(),
                             ds.mutable_data_ptr<float>(), partial.mutable_data_ptr<float>()});
  const auto tables = table_gradients(launch, in, ds, order, needs);
  const at::Tensor sums = sums_of_blocks(launch, partial).view({2, width});
  const auto vector = [&](int which) {
    return needs[3 + which] ? sums[which].to(weight.scalar_type()) : no_gradient(weight);
  };
  return {tables[0], tables[1], tables[2], vector(0), vector(1)};
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("embed_forward", &forward);
  m.impl("embed_backward", &backward);
}

}  // namespace sbrrt::cuda::embed_binding
