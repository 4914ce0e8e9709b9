// The objective of one example and its gradients, for host and device: docs/math/objective.md. A
// Team works on an example, one thread of the host or a warp: `each(n, f)` calls f(j) for its part
// of 0 <= j < n, `sum` and `largest` are over all parts.
//
// A batch has some dozens of outputs, so all is computed in double: rounding of the inputs and of
// the results is what remains.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace sbrrt {

enum class LossKind : int32_t { kCrossEntropy, kBinaryCrossEntropy, kSquared };

constexpr int kLossKinds = 3;
constexpr double kSmallChange = 1.0;  // changes up to this go through expm1 and log1p

// One task's loss and its examples in the batch.
struct LossTask {
  LossKind kind;
  int32_t num_examples, num_outputs;
  int64_t first_output, first_example;     // of all tasks' outputs and labels
  double weight, label_smoothing;
  const float* class_weights;              // [num_classes], or null
  const double *label_mean, *label_scale;  // or null

  SBRRT_HOST_DEVICE bool is_binary() const { return kind == LossKind::kBinaryCrossEntropy; }
  SBRRT_HOST_DEVICE bool is_squared() const { return kind == LossKind::kSquared; }
  SBRRT_HOST_DEVICE int num_classes() const { return is_binary() ? 2 : num_outputs; }
  // The class whose logit an output is.
  SBRRT_HOST_DEVICE int class_of(int output) const { return is_binary() ? 1 : output; }
  SBRRT_HOST_DEVICE int64_t size() const { return int64_t{num_examples} * num_outputs; }
};

struct ObjectiveWeights {
  double smart, bregman, smart_factor;
};

// An example's outputs, or changes of them, as class logits: those of a binary task are 0 and x.
struct Logits {
  const float* outputs;
  bool is_binary;

  SBRRT_KERNEL_CODE double operator()(int j) const {
    return !is_binary ? outputs[j] : j == 0 ? 0.0 : outputs[0];
  }
};

struct LogitDifference {
  Logits to, from;

  SBRRT_KERNEL_CODE double operator()(int j) const { return to(j) - from(j); }
};

// log sum_j exp(w_j)
template <typename Team>
SBRRT_KERNEL_CODE double log_partition(const Team& team, const Logits& w, int num_classes) {
  float most = -INFINITY;
  team.each(num_classes, [&](int j) { most = std::fmax(most, static_cast<float>(w(j))); });
  const double largest = team.largest(most);
  double sum = 0.0;
  team.each(num_classes, [&](int j) { sum += std::exp(w(j) - largest); });
  return largest + std::log(team.sum(sum));
}

// Two distributions, q = softmax(w) and p = softmax(w + d): docs/math/symmetric_kl.md.
template <typename Change>
class KlExample {
 public:
  double divergence = 0.0, mean = 0.0;  // symmetric KL; KL(p || q)

  template <typename Team>
  SBRRT_KERNEL_CODE KlExample(const Team& team, const Logits& w, const Change& d, int num_classes)
      : w_(w), d_(d), partition_(log_partition(team, w, num_classes)) {
    shift_ = partition_shift(team, num_classes);
    double symmetric = 0.0, one_sided = 0.0;
    team.each(num_classes, [&](int j) {
      const double c = log_ratio(j), difference = change(j);
      symmetric += difference * c;
      one_sided += (q(j) + difference) * c;
    });
    divergence = team.sum(symmetric);
    mean = team.sum(one_sided);
  }

  SBRRT_KERNEL_CODE double log_q(int j) const { return w_(j) - partition_; }
  SBRRT_KERNEL_CODE double q(int j) const { return std::exp(log_q(j)); }
  SBRRT_KERNEL_CODE double log_ratio(int j) const { return d_(j) - shift_; }
  // p - q
  SBRRT_KERNEL_CODE double change(int j) const {
    const double c = log_ratio(j);
    return std::fabs(c) <= kSmallChange ? q(j) * std::expm1(c) : std::exp(log_q(j) + c) - q(j);
  }

  // The divergence's gradient in logit j of w + d and of w, where the other stays.
  SBRRT_KERNEL_CODE double grad_moved(int j) const {
    const double difference = change(j);
    return (q(j) + difference) * (log_ratio(j) - mean) + difference;
  }
  SBRRT_KERNEL_CODE double grad_base(int j) const {
    return -q(j) * (log_ratio(j) - mean + divergence) - change(j);
  }

 private:
  // log sum_j q_j exp(d_j)
  template <typename Team>
  SBRRT_KERNEL_CODE double partition_shift(const Team& team, int num_classes) const {
    if (num_classes == 1) return d_(0);
    float most = 0.0f, moved = -INFINITY;
    team.each(num_classes, [&](int j) {
      most = std::fmax(most, static_cast<float>(std::fabs(d_(j))));
      moved = std::fmax(moved, static_cast<float>(log_q(j) + d_(j)));
    });
    const bool is_small = team.largest(most) <= kSmallChange;
    const double largest = team.largest(moved);
    double sum = 0.0;
    team.each(num_classes, [&](int j) {
      sum += is_small ? q(j) * std::expm1(d_(j)) : std::exp(log_q(j) + d_(j) - largest);
    });
    sum = team.sum(sum);
    return is_small ? std::log1p(sum) : largest + std::log(sum);
  }

  Logits w_;
  Change d_;
  double partition_, shift_ = 0.0;
};

// l_s between two outputs of an example and its gradients; nothing where there is no other one.
template <typename Team>
class Divergence {
 public:
  SBRRT_KERNEL_CODE Divergence(const Team& team, const LossTask& task, const float* moved,
                               const float* base)
      : is_there_(moved != nullptr && base != nullptr),
        is_squared_(task.is_squared()),
        difference_(is_there_ && is_squared_ ? static_cast<double>(*moved) - *base : 0.0),
        kl_(kl_of(team, task, is_there_ ? moved : nullptr, base)) {}

  SBRRT_KERNEL_CODE double value() const {
    return is_squared_ ? difference_ * difference_ : kl_.divergence;
  }
  // In an output of `moved` and of `base`, given its class.
  SBRRT_KERNEL_CODE double grad_moved(int j) const {
    if (!is_there_) return 0.0;
    return is_squared_ ? 2.0 * difference_ : kl_.grad_moved(j);
  }
  SBRRT_KERNEL_CODE double grad_base(int j) const {
    if (!is_there_) return 0.0;
    return is_squared_ ? -2.0 * difference_ : kl_.grad_base(j);
  }

 private:
  using Kl = KlExample<LogitDifference>;

  SBRRT_KERNEL_CODE static Kl kl_of(const Team& team, const LossTask& task, const float* moved,
                                    const float* base) {
    const Logits to{moved, task.is_binary()}, from{base, task.is_binary()};
    return {team, from, {to, from}, moved == nullptr || task.is_squared() ? 0 : task.num_classes()};
  }

  bool is_there_, is_squared_;
  double difference_;
  Kl kl_;
};

// The cross entropy of an example whose label is a class, and its gradient in logit j.
template <typename Team>
class ClassLoss {
 public:
  SBRRT_KERNEL_CODE ClassLoss(const Team& team, const LossTask& task, const float* outputs,
                              float label)
      : w_{outputs, task.is_binary()},
        num_classes_(task.num_classes()),
        smoothing_(task.label_smoothing),
        partition_(log_partition(team, w_, num_classes_)) {
    const bool is_class = label >= 0.0f && label < num_classes_ && label == std::floor(label);
    class_ = is_class ? static_cast<int>(label) : -1;
    const bool has_weights = is_class && task.class_weights != nullptr;
    factor_ = !is_class ? NAN : has_weights ? task.class_weights[class_] : 1.0;
    double sum = 0.0;
    team.each(num_classes_, [&](int j) {
      if (target(j) > 0.0) sum += target(j) * (partition_ - w_(j));
    });
    value_ = factor_ * team.sum(sum);
  }

  SBRRT_KERNEL_CODE double value() const { return value_; }
  SBRRT_KERNEL_CODE double grad(int j) const {
    return factor_ * (std::exp(w_(j) - partition_) - target(j));
  }

 private:
  SBRRT_KERNEL_CODE double target(int j) const {
    return smoothing_ / num_classes_ + (j == class_ ? 1.0 - smoothing_ : 0.0);
  }

  Logits w_;
  int num_classes_, class_ = -1;
  double smoothing_, partition_, factor_ = 1.0, value_ = 0.0;
};

// The squared error of an example's value.
struct SquaredLoss {
  double error;

  SBRRT_KERNEL_CODE SquaredLoss(const LossTask& task, const float* outputs, float label) {
    const bool has_units = task.label_mean != nullptr;
    const double value = has_units ? (label - *task.label_mean) / *task.label_scale : label;
    error = *outputs - value;
  }
};

// Outputs of one example, and where the gradients go; null where there is none.
struct ObjectiveExample {
  const float *outputs, *adversarial, *targets;
  float label;
  float *grad_outputs, *grad_adversarial;
};

// Of an example; R_s without its factor.
struct ObjectiveTerms {
  double loss = 0.0, smart = 0.0, bregman = 0.0;

  SBRRT_KERNEL_CODE void operator+=(const ObjectiveTerms& other) {
    loss += other.loss;
    smart += other.smart;
    bregman += other.bregman;
  }
};

// An example's terms; writes its gradients of the task's total.
template <typename Team>
SBRRT_KERNEL_CODE ObjectiveTerms objective_example(const Team& team, const LossTask& task,
                                                   const ObjectiveWeights& weights,
                                                   const ObjectiveExample& e) {
  const Divergence<Team> smart(team, task, e.adversarial, e.outputs);
  const Divergence<Team> bregman(team, task, e.targets == nullptr ? nullptr : e.outputs, e.targets);
  const double scale = task.weight / task.num_examples;
  const double by_smart = weights.smart * weights.smart_factor;
  const auto write = [&](auto grad_loss) {
    team.each(task.num_outputs, [&](int i) {
      const int j = task.class_of(i);
      const double grad = grad_loss(j) + by_smart * smart.grad_base(j) +
                          weights.bregman * bregman.grad_moved(j);
      e.grad_outputs[i] = static_cast<float>(scale * grad);
      if (e.grad_adversarial != nullptr) {
        e.grad_adversarial[i] = static_cast<float>(scale * by_smart * smart.grad_moved(j));
      }
    });
  };
  if (task.is_squared()) {
    const double error = SquaredLoss(task, e.outputs, e.label).error;
    write([&](int) { return 2.0 * error; });
    return {error * error, smart.value(), bregman.value()};
  }
  const ClassLoss<Team> loss(team, task, e.outputs, e.label);
  write([&](int j) { return loss.grad(j); });
  return {loss.value(), smart.value(), bregman.value()};
}

// A task's row of `terms` from the sums over its examples; `reported` is what R_s is said to be.
SBRRT_KERNEL_CODE inline void write_terms(const LossTask& task, const ObjectiveWeights& weights,
                                          const ObjectiveTerms& sums, const float* reported,
                                          float* terms) {
  const double n = task.num_examples, loss = sums.loss / n, bregman = sums.bregman / n;
  const double own = weights.smart_factor * sums.smart / n;
  const double smart = reported == nullptr ? own : *reported;
  terms[0] = static_cast<float>(loss);
  terms[1] = static_cast<float>(smart);
  terms[2] = static_cast<float>(bregman);
  terms[3] = static_cast<float>(
      task.weight * (loss + weights.smart * smart + weights.bregman * bregman));
}

// The gradient of a task's mean l_s(w + t, w) in t to first order, of one example.
template <typename Team>
SBRRT_KERNEL_CODE void smoothness_cotangent(const Team& team, const LossTask& task,
                                            const float* outputs, const float* tangents,
                                            float* out) {
  const double scale = 2.0 / task.num_examples;
  if (task.is_squared()) {
    team.each(1, [&](int) { *out = static_cast<float>(scale * *tangents); });
    return;
  }
  const Logits w{outputs, task.is_binary()}, t{tangents, task.is_binary()};
  const int num_classes = task.num_classes();
  const double partition = log_partition(team, w, num_classes);
  double sum = 0.0;
  team.each(num_classes, [&](int j) { sum += std::exp(w(j) - partition) * t(j); });
  const double mean = team.sum(sum);
  team.each(task.num_outputs, [&](int i) {
    const int j = task.class_of(i);
    out[i] = static_cast<float>(scale * std::exp(w(j) - partition) * (t(j) - mean));
  });
}

// l_s(w + d, w) of one example.
template <typename Team>
SBRRT_KERNEL_CODE double smoothness_value(const Team& team, const LossTask& task,
                                          const float* outputs, const float* changes) {
  if (task.is_squared()) return static_cast<double>(*changes) * *changes;
  const Logits w{outputs, task.is_binary()}, d{changes, task.is_binary()};
  return KlExample<Logits>(team, w, d, task.num_classes()).divergence;
}

}  // namespace sbrrt
