// The objective of a group of tasks on CUDA: from tensors to the launchers of objective.h.
#include <algorithm>
#include <vector>

#include "common/objective_op.h"
#include "cuda/binding.h"
#include "cuda/objective.h"

namespace sbrrt {

using namespace cuda;

namespace {

LossList list_of(const char* op, const std::vector<LossTask>& tasks) {
  TORCH_CHECK_VALUE(tasks.size() <= kMaxTasks, "sbrrt::", op, ": there may be at most ", kMaxTasks,
                    " tasks on CUDA, got ", tasks.size());
  LossList list{static_cast<int>(tasks.size()), {}};
  std::copy(tasks.begin(), tasks.end(), list.tasks);
  return list;
}

// The data of a dense form, which goes to `kept`; null where there is none.
const float* floats_of(MaybeTensorRef tensor, std::vector<at::Tensor>& kept) {
  if (!tensor) return nullptr;
  kept.push_back(tensor->contiguous());
  return kept.back().const_data_ptr<float>();
}

void check_one_gpu(const char* op, const at::Tensor& first, at::TensorList others) {
  for (const at::Tensor& other : others) Launch(op, first, {other});
}

SmoothnessParams smoothness_params(const char* op, at::IntArrayRef losses,
                                   const at::Tensor& outputs, const at::Tensor& changes,
                                   const at::Tensor& out) {
  const std::vector<LossTask> tasks = read_losses(op, losses);
  return {list_of(op, tasks), outputs.const_data_ptr<float>(), changes.const_data_ptr<float>(),
          tasks.back().first_example + tasks.back().num_examples, out.mutable_data_ptr<float>()};
}

}  // namespace

void ObjectiveOp::run_cuda() const {
  const Launch launch(kOp, outputs, {labels, terms, grad_outputs});
  check_one_gpu(kOp, outputs, class_weights);
  check_one_gpu(kOp, outputs, label_means);
  check_one_gpu(kOp, outputs, label_scales);
  for (const auto* tensor : {&adversarial, &targets, &smart_values, &grad_adversarial}) {
    if (*tensor) check_one_gpu(kOp, outputs, **tensor);
  }
  std::vector<at::Tensor> kept;
  const LossList list = list_of(kOp, tasks_of(*this, kept));
  const at::Tensor w = outputs.contiguous(), y = labels.contiguous();
  const float *z = floats_of(adversarial, kept), *t = floats_of(targets, kept);
  float* dz = grad_adversarial ? grad_adversarial->mutable_data_ptr<float>() : nullptr;
  launch(&objective,
         ObjectiveParams{list, weights(), w.const_data_ptr<float>(), y.const_data_ptr<float>(), z,
                         t, floats_of(smart_values, kept), terms.mutable_data_ptr<float>(),
                         grad_outputs.mutable_data_ptr<float>(), dz});
}

void SmoothnessCotangents::run_cuda() const {
  const Launch launch(kOp, outputs, {tangents, out});
  const at::Tensor w = outputs.contiguous(), t = tangents.contiguous();
  launch(&smoothness_cotangents, smoothness_params(kOp, losses, w, t, out));
}

void SmoothnessValues::run_cuda() const {
  const Launch launch(kOp, outputs, {changes, out});
  const at::Tensor w = outputs.contiguous(), d = changes.contiguous();
  launch(&smoothness_values, smoothness_params(kOp, losses, w, d, out));
}

}  // namespace sbrrt
