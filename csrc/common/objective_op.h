// The objective of a group of tasks and SMART's smoothness as ops (common/op.h).
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/objective.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

// `losses` has kLossFields numbers per task: kind, num_examples and num_outputs; `numbers` two,
// weight and label smoothing. Lists of tensors have one per task, without elements where there is
// none.
constexpr size_t kLossFields = 3;
constexpr size_t kLossNumbers = 2;

struct ObjectiveOp {
  static constexpr auto kOp = "objective";
  using Signature = void(TensorRef, TensorRef, MaybeTensorRef, MaybeTensorRef, MaybeTensorRef,
                         at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef,
                         at::ArrayRef<double>, double, double, double, TensorRef, TensorRef,
                         MaybeTensorRef);
  TensorRef outputs;  // float32 [num_outputs], as all vectors
  TensorRef labels;   // [num_examples]
  MaybeTensorRef adversarial, targets;
  MaybeTensorRef smart_values;                        // [num_tasks]
  at::TensorList class_weights;                       // float32 [num_classes]
  at::TensorList label_means, label_scales;           // float64 []
  at::IntArrayRef losses;
  at::ArrayRef<double> numbers;
  double smart_weight, bregman_weight, smart_factor;
  TensorRef terms;  // float32 [num_tasks, 4]
  TensorRef grad_outputs;
  MaybeTensorRef grad_adversarial;

  WriteSet check(at::DeviceType device) const;
  ObjectiveWeights weights() const { return {smart_weight, bregman_weight, smart_factor}; }
  void run_cpu() const;
  void run_cuda() const;
};

struct SmoothnessCotangents {
  static constexpr auto kOp = "smoothness_cotangents";
  using Signature = void(TensorRef, TensorRef, at::IntArrayRef, TensorRef);
  TensorRef outputs, tangents;
  at::IntArrayRef losses;
  TensorRef out;  // [num_outputs]

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct SmoothnessValues {
  static constexpr auto kOp = "smoothness_values";
  using Signature = void(TensorRef, TensorRef, at::IntArrayRef, TensorRef);
  TensorRef outputs, changes;
  at::IntArrayRef losses;
  TensorRef out;  // [num_tasks]

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline LossTask read_loss(const char* op, const int64_t* fields, const LossTask* before) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t kind = fields[0], count = fields[1], outputs = fields[2];
  const bool is_classes = kind == static_cast<int64_t>(LossKind::kCrossEntropy);
  TORCH_CHECK_VALUE(kind >= 0 && kind < kLossKinds && count >= 1 && count <= kMost &&
                        outputs >= 1 && outputs <= kMost && (is_classes || outputs == 1),
                    "sbrrt::", op, ": losses must be kind, num_examples and num_outputs each, all "
                    "in range, got ", at::IntArrayRef(fields, kLossFields));
  const int64_t first_output = before ? before->first_output + before->size() : 0;
  const int64_t first_example = before ? before->first_example + before->num_examples : 0;
  return {static_cast<LossKind>(kind), static_cast<int32_t>(count), static_cast<int32_t>(outputs),
          first_output, first_example, 1.0, 0.0, nullptr, nullptr, nullptr};
}

inline std::vector<LossTask> read_losses(const char* op, at::IntArrayRef losses) {
  const size_t count = losses.size() / kLossFields;
  TORCH_CHECK_VALUE(count >= 1 && losses.size() == count * kLossFields, "sbrrt::", op,
                    ": losses must have ", kLossFields, " numbers for each task, got ",
                    losses.size());
  std::vector<LossTask> tasks;
  for (size_t i = 0; i < count; ++i) {
    const LossTask* before = i == 0 ? nullptr : &tasks.back();
    tasks.push_back(read_loss(op, losses.data() + i * kLossFields, before));
  }
  return tasks;
}

inline int64_t num_outputs_of(const std::vector<LossTask>& tasks) {
  return tasks.back().first_output + tasks.back().size();
}

// A float32 vector that is read.
inline void check_vector(const char* op, const char* name, TensorRef tensor, int64_t size,
                         const char* shape, at::DeviceType device) {
  check_tensor(op, name, tensor, at::kFloat, shape,
               tensor.defined() && tensor.dim() == 1 && tensor.sym_size(0) == size);
  check_device(op, name, tensor, device);
}

inline void check_written_vector(const char* op, const char* name, TensorRef tensor, int64_t size,
                                 const char* shape, at::DeviceType device) {
  check_written(op, name, tensor, at::kFloat, shape,
                tensor.defined() && tensor.dim() == 1 && tensor.sym_size(0) == size, device);
}

// An entry per task of a list; without elements there is none.
inline void check_entries(const char* op, const char* list, at::TensorList tensors,
                          at::ScalarType dtype, const std::vector<LossTask>& tasks, bool by_class,
                          at::DeviceType device) {
  TORCH_CHECK_VALUE(tensors.size() == tasks.size(), "sbrrt::", op, ": ", list,
                    " must have one entry for each of ", tasks.size(), " tasks, got ",
                    tensors.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    const std::string name = c10::str(list, "[", i, "]");
    const at::Tensor& tensor = tensors[i];
    TORCH_CHECK_TYPE(tensor.defined(), "sbrrt::", op, ": ", name, " is undefined");
    const int64_t size = by_class ? tasks[i].num_classes() : 1;
    const bool is_meant = by_class ? !tasks[i].is_squared() : tasks[i].is_squared();
    const bool has_shape =
        is_meant && tensor.dim() == (by_class ? 1 : 0) && tensor.sym_numel() == size;
    check_tensor(op, name.c_str(), tensor, dtype, by_class ? "[num_classes] or [0]" : "[] or [0]",
                 tensor.sym_numel() == 0 || has_shape);
    check_device(op, name.c_str(), tensor, device);
  }
}

inline void check_objective_lists(const ObjectiveOp& op, const std::vector<LossTask>& tasks,
                                  at::DeviceType device) {
  constexpr auto name = ObjectiveOp::kOp;
  check_entries(name, "class_weights", op.class_weights, at::kFloat, tasks, true, device);
  check_entries(name, "label_means", op.label_means, at::kDouble, tasks, false, device);
  check_entries(name, "label_scales", op.label_scales, at::kDouble, tasks, false, device);
  for (size_t i = 0; i < tasks.size(); ++i) {
    TORCH_CHECK_VALUE(op.label_means[i].sym_numel() == op.label_scales[i].sym_numel(), "sbrrt::",
                      name, ": label_means[", i, "] and label_scales[", i, "] come together");
  }
  TORCH_CHECK_VALUE(op.numbers.size() == kLossNumbers * tasks.size(), "sbrrt::", name,
                    ": numbers must have ", kLossNumbers, " for each of ", tasks.size(),
                    " tasks, got ", op.numbers.size());
  bool is_finite = std::isfinite(op.smart_weight) && std::isfinite(op.bregman_weight) &&
                   std::isfinite(op.smart_factor);
  for (const double x : op.numbers) is_finite = is_finite && std::isfinite(x);
  TORCH_CHECK_VALUE(is_finite, "sbrrt::", name,
                    ": numbers, weights and smart_factor must be finite");
  for (size_t i = 0; i < tasks.size(); ++i) {
    const double smoothing = op.numbers[kLossNumbers * i + 1];
    TORCH_CHECK_VALUE(smoothing >= 0 && smoothing < 1, "sbrrt::", name,
                      ": numbers have a label smoothing, which must be in [0, 1), got ", smoothing);
  }
}

inline WriteSet ObjectiveOp::check(at::DeviceType device) const {
  const std::vector<LossTask> tasks = read_losses(kOp, losses);
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  const int64_t num_outputs = num_outputs_of(tasks);
  const LossTask& last = tasks.back();
  check_vector(kOp, "outputs", outputs, num_outputs, "[num_outputs]", device);
  check_vector(kOp, "labels", labels, last.first_example + last.num_examples, "[num_examples]",
               device);
  Arguments written{{"terms", terms}, {"grad_outputs", grad_outputs}};
  Arguments read{{"outputs", outputs}, {"labels", labels}};
  if (adversarial) {
    check_vector(kOp, "adversarial", *adversarial, num_outputs, "[num_outputs]", device);
  }
  if (targets) check_vector(kOp, "targets", *targets, num_outputs, "[num_outputs]", device);
  if (smart_values) {
    check_vector(kOp, "smart_values", *smart_values, num_tasks, "[num_tasks]", device);
  }
  check_objective_lists(*this, tasks, device);
  TORCH_CHECK_VALUE(grad_adversarial.has_value() == adversarial.has_value() &&
                        (adversarial || !smart_values),
                    "sbrrt::", kOp,
                    ": adversarial and grad_adversarial come together, smart_values with them");
  check_written(kOp, "terms", terms, at::kFloat, "[num_tasks, 4]",
                terms.defined() && terms.dim() == 2 && terms.sym_size(0) == num_tasks &&
                    terms.sym_size(1) == 4,
                device);
  check_written_vector(kOp, "grad_outputs", grad_outputs, num_outputs, "[num_outputs]", device);
  if (grad_adversarial) {
    check_written_vector(kOp, "grad_adversarial", *grad_adversarial, num_outputs, "[num_outputs]",
                         device);
  }
  append(written, "grad_adversarial", grad_adversarial);
  append(read, "adversarial", adversarial);
  append(read, "targets", targets);
  append(read, "smart_values", smart_values);
  append(read, "class_weights", class_weights);
  append(read, "label_means", label_means);
  append(read, "label_scales", label_scales);
  return {kOp, std::move(written), read};
}

inline WriteSet SmoothnessCotangents::check(at::DeviceType device) const {
  const int64_t num_outputs = num_outputs_of(read_losses(kOp, losses));
  check_vector(kOp, "outputs", outputs, num_outputs, "[num_outputs]", device);
  check_vector(kOp, "tangents", tangents, num_outputs, "[num_outputs]", device);
  check_written_vector(kOp, "out", out, num_outputs, "[num_outputs]", device);
  return {kOp, {{"out", out}}, {{"outputs", outputs}, {"tangents", tangents}}};
}

inline WriteSet SmoothnessValues::check(at::DeviceType device) const {
  const std::vector<LossTask> tasks = read_losses(kOp, losses);
  const int64_t num_outputs = num_outputs_of(tasks);
  check_vector(kOp, "outputs", outputs, num_outputs, "[num_outputs]", device);
  check_vector(kOp, "changes", changes, num_outputs, "[num_outputs]", device);
  check_written_vector(kOp, "out", out, static_cast<int64_t>(tasks.size()), "[num_tasks]", device);
  return {kOp, {{"out", out}}, {{"outputs", outputs}, {"changes", changes}}};
}

// The tasks with their numbers and tensors; dense forms of the weights go to `kept`, which must
// outlive the result's use.
inline std::vector<LossTask> tasks_of(const ObjectiveOp& op, std::vector<at::Tensor>& kept) {
  std::vector<LossTask> tasks = read_losses(ObjectiveOp::kOp, op.losses);
  for (size_t i = 0; i < tasks.size(); ++i) {
    LossTask& task = tasks[i];
    task.weight = op.numbers[kLossNumbers * i];
    task.label_smoothing = op.numbers[kLossNumbers * i + 1];
    if (op.class_weights[i].numel() != 0) {
      kept.push_back(op.class_weights[i].contiguous());
      task.class_weights = kept.back().const_data_ptr<float>();
    }
    if (op.label_means[i].numel() != 0) {
      task.label_mean = op.label_means[i].const_data_ptr<double>();
      task.label_scale = op.label_scales[i].const_data_ptr<double>();
    }
  }
  return tasks;
}

}  // namespace sbrrt
