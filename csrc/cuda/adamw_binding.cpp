// adamw_ema_, adamw_ema_rows_ and gradient_norm on CUDA: from tensors to the launchers of adamw.h.
// Rate, clip factor and step are read on the device, so their values are not checked.
#include <algorithm>
#include <memory>
#include <vector>

#include "common/adamw_op.h"
#include "cuda/adamw.h"
#include "cuda/binding.h"

namespace sbrrt {

using namespace cuda;

namespace {

// One number or one per parameter.
int64_t stride_of(const at::Tensor& numbers) { return numbers.dim() == 0 ? 0 : numbers.stride(0); }

const void* data_from(const at::Tensor& numbers, int64_t first) {
  const auto element_size = static_cast<int64_t>(numbers.element_size());
  return static_cast<const char*>(numbers.const_data_ptr()) +
         first * stride_of(numbers) * element_size;
}

// For the parameters from `first` on.
AdamwNumbers numbers_of(const AdamwSettings& n, int64_t first) {
  return {data_from(n.learning_rate, first),
          stride_of(n.learning_rate),
          n.learning_rate.scalar_type() == at::kDouble,
          n.clip_factor.const_data_ptr<float>(),
          data_from(n.step, first),
          stride_of(n.step),
          n.step.scalar_type() == at::kLong,
          n.beta1,
          n.beta2,
          n.eps,
          n.ema_beta};
}

template <typename T>
T* item(at::TensorList tensors, size_t index) {
  if (tensors.empty() || tensors[index].numel() == 0) return nullptr;
  return static_cast<T*>(tensors[index].mutable_data_ptr());
}

AdamwTensor tensor_of(const AdamwLists& lists, size_t i, const at::Tensor& grad,
                      double weight_decay) {
  return {item<float>(lists.params, i),     item<float>(lists.exp_avg, i),
          item<float>(lists.exp_avg_sq, i), item<float>(lists.ema, i),
          item<void>(lists.low_precision, i), item<void>(lists.ema_low_precision, i),
          grad.numel() == 0 ? nullptr : grad.const_data_ptr(), lists.params[i].numel(),
          weight_decay};
}

std::vector<at::Tensor> dense(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

int32_t next_block(int32_t block, int64_t size) {
  return block + static_cast<int32_t>(num_pieces(size));
}

// A parameter that stays as it is and has no average needs no blocks.
int64_t num_updated(const AdamwTensor& tensor) {
  return tensor.grad == nullptr && tensor.ema == nullptr ? 0 : tensor.size;
}

}  // namespace

void AdamwEma::run_cuda() const {
  const size_t num_params = lists.params.size();
  if (num_params == 0) return;
  const Launch launch(kOp, lists.params[0], {settings.learning_rate, settings.clip_factor,
                                             settings.step});
  const std::vector<at::Tensor> grads = dense(lists.grads);
  const auto table = std::make_unique<AdamwParams>();
  for (size_t first = 0; first < num_params; first += kMaxAdamwTensors) {
    const size_t count = std::min<size_t>(kMaxAdamwTensors, num_params - first);
    table->numbers = numbers_of(settings, static_cast<int64_t>(first));
    table->num_tensors = static_cast<int>(count);
    table->first_block[0] = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t from = first + i;
      table->tensors[i] = tensor_of(lists, from, grads[from], settings.weight_decay[from]);
      table->grad_dtype[i] = element_type(grads[from]);
      table->first_block[i + 1] =
          next_block(table->first_block[i], num_updated(table->tensors[i]));
    }
    launch(&adamw_ema, *table);
  }
}

void AdamwEmaRows::run_cuda() const {
  if (param.numel() == 0) return;
  const Launch launch(kOp, param, {grad, rows, touched, settings.learning_rate,
                                   settings.clip_factor, settings.step});
  const at::Tensor dense_grad = grad.contiguous(), dense_rows = rows.contiguous();
  launch(&adamw_ema_rows,
         AdamwRowsParams{numbers_of(settings, 0),
                         tensor_of(lists(), 0, dense_grad, settings.weight_decay[0]),
                         param.size(0), param.size(1), rows.size(0),
                         dense_rows.const_data_ptr<int64_t>(), touched.mutable_data_ptr<bool>()});
}

void GradientNorm::run_cuda() const {
  const Launch launch(kOp, out, {});
  std::vector<at::Tensor> tensors = dense(grads);
  int64_t num_partial = 0;
  for (const at::Tensor& tensor : tensors) num_partial += num_pieces(tensor.numel());
  if (num_partial == 0) {  // a block has to write the results
    tensors = {out.new_zeros({1})};
    num_partial = 1;
  }
  const at::Tensor partial = out.new_empty({num_partial}, out.options().dtype(at::kLong));
  const at::Tensor ticket = out.new_zeros({1}, out.options().dtype(at::kInt));
  const auto table = std::make_unique<GradientNormParams>();
  table->num_partial = num_partial;
  table->partial_begin = 0;
  table->partial = static_cast<unsigned long long*>(partial.mutable_data_ptr());
  table->ticket = static_cast<unsigned*>(ticket.mutable_data_ptr());
  table->max_norm = max_norm;
  table->out = out.mutable_data_ptr<float>();
  for (size_t first = 0; first < tensors.size(); first += kMaxNormTensors) {
    const size_t count = std::min<size_t>(kMaxNormTensors, tensors.size() - first);
    table->num_tensors = static_cast<int>(count);
    table->first_block[0] = 0;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& tensor = tensors[first + i];
      table->data[i] = tensor.const_data_ptr();
      table->size[i] = tensor.numel();
      table->dtype[i] = element_type(tensor);
      table->first_block[i + 1] = next_block(table->first_block[i], tensor.numel());
    }
    launch(&gradient_norm, *table);
    table->partial_begin += table->first_block[count];
  }
}

}  // namespace sbrrt
