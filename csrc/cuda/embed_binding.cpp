// embed on CUDA: from tensors to the launchers of embed.h. An index outside its table makes the
// row NaN, since the values of indices cannot be read here.
#include <ATen/ops/argsort.h>

#include <array>

#include "common/embed_op.h"
#include "cuda/binding.h"
#include "cuda/embed.h"

namespace sbrrt {

using namespace cuda;

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

  DenseInputs(const EmbedTensors& t, const DropoutArguments& dropout)
      : indices{t.ids.contiguous(), t.positions.contiguous(), t.types.contiguous()},
        tables{with_dense_rows(t.word), with_dense_rows(t.position), with_dense_rows(t.type)},
        weight(floats(t.weight)),
        rng(dropout.rng.contiguous()),
        offsets(dropout.offsets.contiguous()),
        params{t.ids.size(0), static_cast<int>(t.word.size(1)), element_type(t.word), {},
               dropout_params(dropout, rng, offsets)} {
    for (int i = 0; i < 3; ++i) {
      params.tables[i] = {const_rows(tables[i]), tables[i].size(0),
                          indices[i].const_data_ptr<int64_t>()};
    }
  }
};

Launch launch_of(const char* op, const EmbedTensors& t, const DropoutArguments& dropout,
                 TensorRef other) {
  check_kernel(op, t);
  return Launch(op, t.word, {t.ids, t.positions, t.types, t.position, t.type, t.weight,
                             dropout.rng, dropout.offsets, other});
}

// Tables' gradients, where they are wanted, from those of the rows that tokens read of them, ds
// [num_tokens, width].
void write_table_gradients(const Launch& launch, const DenseInputs& in, const at::Tensor& ds,
                           MaybeTensorRef order,
                           const std::array<const std::optional<at::Tensor>*, 3>& gradients) {
  std::array<at::Tensor, 3> orders;
  const int64_t num_chunks = num_token_chunks(in.params.num_tokens);
  const at::Tensor partial = at::empty({3, num_chunks, 2, in.params.width}, ds.options());
  EmbedTablesParams params{in.params.num_tokens,        in.params.width,
                           in.params.dtype,             ds.const_data_ptr<float>(),
                           partial.mutable_data_ptr<float>(), {}};
  bool is_any_wanted = false;
  for (int i = 0; i < 3; ++i) {
    if (!*gradients[i]) continue;
    is_any_wanted = true;
    const at::Tensor& gradient = **gradients[i];
    if (needs_zeros(in.params.num_tokens, gradient.size(0))) gradient.zero_();
    orders[i] = order ? order->select(0, i).contiguous()
                      : at::argsort(in.indices[i], /*stable=*/true, /*dim=*/0);
    params.tables[i] = {in.params.tables[i].indices, orders[i].const_data_ptr<int64_t>(),
                        gradient.size(0), gradient.mutable_data_ptr()};
  }
  if (is_any_wanted) launch(&embed_tables, params);
}

const at::Tensor* pointer(MaybeTensorRef tensor) { return tensor ? &*tensor : nullptr; }

}  // namespace

void EmbedForward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, dropout, shift);
  const DenseInputs dense(in, dropout);
  const at::Tensor dense_shift = floats(shift);
  launch(&embed_forward,
         EmbedForwardParams{dense.params, dense.weight.const_data_ptr<float>(),
                            dense_shift.const_data_ptr<float>(), static_cast<float>(eps),
                            rows(out), statistics.mean.mutable_data_ptr<float>(),
                            statistics.rstd.mutable_data_ptr<float>()});
}

void EmbedBackward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, dropout, grad);
  const DenseInputs dense(in, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad.to(in.word.scalar_type()));
  const at::Tensor means = statistics.mean.contiguous(), rstds = statistics.rstd.contiguous();
  const int64_t num_tokens = grad.size(0), width = grad.size(1);
  const at::Tensor ds = empty_floats({num_tokens, width}, grad);
  const at::Tensor partial = empty_floats({num_row_blocks(num_tokens), 2 * width}, grad);
  launch(&embed_backward,
         EmbedBackwardParams{dense.params, const_rows(dense_grad),
                             dense.weight.const_data_ptr<float>(), means.const_data_ptr<float>(),
                             rstds.const_data_ptr<float>(), ds.mutable_data_ptr<float>(),
                             partial.mutable_data_ptr<float>()});
  write_table_gradients(launch, dense, ds, order, {&dword, &dposition, &dtype});
  if (dweight || dshift) write_sums(launch, partial, {pointer(dweight), pointer(dshift)});
}

}  // namespace sbrrt
