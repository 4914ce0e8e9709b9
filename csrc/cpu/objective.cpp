// The objective of a group of tasks on the CPU: an example at a time, its sums in their order.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/objective_op.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainClasses = 256;

// A thread on its own.
struct Alone {
  template <typename F>
  void each(int count, const F& f) const {
    for (int j = 0; j < count; ++j) f(j);
  }
  double sum(double x) const { return x; }
  float largest(float x) const { return x; }
};

// f(task, example) of every example.
template <typename F>
void each_example(const std::vector<LossTask>& tasks, const F& f) {
  const int64_t num_examples = tasks.back().first_example + tasks.back().num_examples;
  const int64_t grain =
      std::max<int64_t>(1, kGrainClasses * num_examples / num_outputs_of(tasks));
  at::parallel_for(0, num_examples, grain, [&](int64_t begin, int64_t end) {
    for (const LossTask& task : tasks) {
      const int64_t first = task.first_example;
      const int64_t last = std::min(end, first + task.num_examples);
      for (int64_t i = std::max(begin, first); i < last; ++i) f(task, i - first);
    }
  });
}

const float* floats_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

std::optional<at::Tensor> dense(MaybeTensorRef tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

// Elements from `offset` on, or null.
template <typename T>
T* at_offset(T* data, int64_t offset) {
  return data == nullptr ? nullptr : data + offset;
}

}  // namespace

void ObjectiveOp::run_cpu() const {
  std::vector<at::Tensor> kept;
  const std::vector<LossTask> tasks = tasks_of(*this, kept);
  const at::Tensor w = outputs.contiguous(), y = labels.contiguous();
  const auto z = dense(adversarial), t = dense(targets), reported = dense(smart_values);
  float* dw = grad_outputs.mutable_data_ptr<float>();
  float* dz = grad_adversarial ? grad_adversarial->mutable_data_ptr<float>() : nullptr;
  std::vector<ObjectiveTerms> found(y.size(0));
  each_example(tasks, [&](const LossTask& task, int64_t example) {
    const int64_t at = task.first_output + example * task.num_outputs;
    const int64_t i = task.first_example + example;
    found[i] = objective_example(
        Alone{}, task, weights(),
        {w.const_data_ptr<float>() + at, at_offset(floats_of(z), at), at_offset(floats_of(t), at),
         y.const_data_ptr<float>()[i], dw + at, at_offset(dz, at)});
  });
  float* rows = terms.mutable_data_ptr<float>();
  for (size_t i = 0; i < tasks.size(); ++i) {
    ObjectiveTerms sums;
    const LossTask& task = tasks[i];
    for (int64_t k = 0; k < task.num_examples; ++k) sums += found[task.first_example + k];
    write_terms(task, weights(), sums, at_offset(floats_of(reported), static_cast<int64_t>(i)),
                rows + 4 * i);
  }
}

void SmoothnessCotangents::run_cpu() const {
  const std::vector<LossTask> tasks = read_losses(kOp, losses);
  const at::Tensor w = outputs.contiguous(), t = tangents.contiguous();
  float* results = out.mutable_data_ptr<float>();
  each_example(tasks, [&](const LossTask& task, int64_t example) {
    const int64_t at = task.first_output + example * task.num_outputs;
    smoothness_cotangent(Alone{}, task, w.const_data_ptr<float>() + at,
                         t.const_data_ptr<float>() + at, results + at);
  });
}

void SmoothnessValues::run_cpu() const {
  const std::vector<LossTask> tasks = read_losses(kOp, losses);
  const at::Tensor w = outputs.contiguous(), d = changes.contiguous();
  std::vector<double> found(tasks.back().first_example + tasks.back().num_examples);
  each_example(tasks, [&](const LossTask& task, int64_t example) {
    const int64_t at = task.first_output + example * task.num_outputs;
    found[task.first_example + example] = smoothness_value(
        Alone{}, task, w.const_data_ptr<float>() + at, d.const_data_ptr<float>() + at);
  });
  float* results = out.mutable_data_ptr<float>();
  for (size_t i = 0; i < tasks.size(); ++i) {
    double sum = 0.0;
    for (int64_t k = 0; k < tasks[i].num_examples; ++k) sum += found[tasks[i].first_example + k];
    results[i] = static_cast<float>(sum / tasks[i].num_examples);
  }
}

}  // namespace sbrrt
