// adamw_ema_, adamw_ema_rows_ and gradient_norm on CUDA: from tensors to the launchers of adamw.h.
// Rate, clip factor and step are read on the device, so their values are not checked.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common/adamw_checks.h"
#include "cuda/adamw.h"
#include "cuda/binding.h"

namespace sbrrt::cuda::adamw_binding {
namespace {

struct Numbers {
  const at::Tensor &learning_rate, &clip_factor, &step;
  double beta1, beta2, eps, ema_beta;
};

// For the parameters from `first` on.
AdamwNumbers numbers_of(const Numbers& n, int64_t first) {
  const at::Tensor& rate = n.learning_rate;
  const int64_t stride = rate.dim() == 0 ? 0 : rate.stride(0);
  const auto* data = static_cast<const char*>(rate.const_data_ptr());
  return {data + first * stride * static_cast<int64_t>(rate.element_size()),
          stride,
          rate.scalar_type() == at::kDouble,
          n.clip_factor.const_data_ptr<float>(),
          n.step.const_data_ptr(),
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
          grad.const_data_ptr(),            lists.params[i].numel(),
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

void update(at::TensorList params, at::TensorList grads, at::TensorList exp_avg,
            at::TensorList exp_avg_sq, at::TensorList ema, at::TensorList low_precision,
            at::TensorList ema_low_precision, const at::Tensor& learning_rate,
            at::ArrayRef<double> weight_decay, double beta1, double beta2, double eps,
            const at::Tensor& clip_factor, const at::Tensor& step, double ema_beta) {
  const AdamwLists lists{"adamw_ema_", params, grads, exp_avg, exp_avg_sq, ema, low_precision,
                         ema_low_precision, at::kCUDA};
  check_adamw_lists(lists);
  check_adamw_numbers(lists, learning_rate, weight_decay, beta1, beta2, eps, clip_factor, step,
                      ema_beta);
  const WriteSet writes = adamw_write_set(lists, {learning_rate, clip_factor, step});
  if (params.empty()) return;
  const Launch launch(lists.op, params[0], {grads[0], learning_rate, clip_factor, step});
  const std::vector<at::Tensor> dense_grads = dense(grads);
  const auto table = std::make_unique<AdamwParams>();
  table->grad_dtype = element_type(grads[0]);
  for (size_t first = 0; first < params.size(); first += kMaxAdamwTensors) {
    const size_t count = std::min<size_t>(kMaxAdamwTensors, params.size() - first);
    table->numbers = numbers_of({learning_rate, clip_factor, step, beta1, beta2, eps, ema_beta},
                                static_cast<int64_t>(first));
    table->num_tensors = static_cast<int>(count);
    table->first_block[0] = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t from = first + i;
      table->tensors[i] = tensor_of(lists, from, dense_grads[from], weight_decay[from]);
      table->first_block[i + 1] = next_block(table->first_block[i], params[from].numel());
    }
    launch(&adamw_ema, *table);
  }
  writes.count_change();
}

void update_rows(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& rows,
                 const at::Tensor& touched, const at::Tensor& exp_avg,
                 const at::Tensor& exp_avg_sq, const at::Tensor& ema,
                 const at::Tensor& learning_rate, double weight_decay, double beta1, double beta2,
                 double eps, const at::Tensor& clip_factor, const at::Tensor& step,
                 double ema_beta) {
  const AdamwLists lists{"adamw_ema_rows_", param, param, exp_avg, exp_avg_sq, ema, {}, {},
                         at::kCUDA};
  check_adamw_rows(lists, grad, rows, touched);
  check_adamw_numbers(lists, learning_rate, weight_decay, beta1, beta2, eps, clip_factor, step,
                      ema_beta);
  const WriteSet writes =
      adamw_rows_write_set(lists, {learning_rate, clip_factor, step}, grad, rows, touched);
  if (param.numel() == 0) return;
  const Launch launch(lists.op, param, {grad, rows, touched, learning_rate, clip_factor, step});
  const at::Tensor dense_grad = grad.contiguous(), dense_rows = rows.contiguous();
  launch(&adamw_ema_rows,
         AdamwRowsParams{
             numbers_of({learning_rate, clip_factor, step, beta1, beta2, eps, ema_beta}, 0),
             tensor_of(lists, 0, dense_grad, weight_decay), param.size(0), param.size(1),
             rows.size(0), dense_rows.const_data_ptr<int64_t>(), touched.mutable_data_ptr<bool>()});
  writes.count_change();
}

at::Tensor norm(at::TensorList grads) {
  constexpr auto op = "gradient_norm";
  check_gradients(grads, at::kCUDA);
  const Launch launch(op, grads[0], {});
  const std::vector<at::Tensor> tensors = dense(grads);
  int64_t num_partial = 0;
  for (const at::Tensor& tensor : tensors) num_partial += num_pieces(tensor.numel());
  const at::Tensor out = at::zeros({}, grads[0].options().dtype(at::kFloat));
  if (num_partial == 0) return out;
  const at::Tensor partial = at::empty({num_partial}, grads[0].options().dtype(at::kLong));
  const at::Tensor ticket = at::zeros({1}, grads[0].options().dtype(at::kInt));
  const auto table = std::make_unique<GradientNormParams>();
  table->dtype = element_type(grads[0]);
  table->num_partial = num_partial;
  table->partial_begin = 0;
  table->partial = static_cast<unsigned long long*>(partial.mutable_data_ptr());
  table->ticket = static_cast<unsigned*>(ticket.mutable_data_ptr());
  table->out = out.mutable_data_ptr<float>();
  for (size_t first = 0; first < tensors.size(); first += kMaxNormTensors) {
    const size_t count = std::min<size_t>(kMaxNormTensors, tensors.size() - first);
    table->num_tensors = static_cast<int>(count);
    table->first_block[0] = 0;
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor& tensor = tensors[first + i];
      table->data[i] = tensor.const_data_ptr();
      table->size[i] = tensor.numel();
      table->first_block[i + 1] = next_block(table->first_block[i], tensor.numel());
    }
    launch(&gradient_norm, *table);
    table->partial_begin += table->first_block[count];
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("adamw_ema_", &update);
  m.impl("adamw_ema_rows_", &update_rows);
  m.impl("gradient_norm", &norm);
}

}  // namespace sbrrt::cuda::adamw_binding
