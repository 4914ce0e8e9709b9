// symmetric_kl's forward, backward and Fisher product as ops (common/op.h).
#pragma once

#include "common/checks.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

struct KlForward {
  static constexpr auto kOp = "symmetric_kl_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef);
  TensorRef logits, delta;
  TensorRef out;  // float32 [num_examples]

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct KlBackward {
  static constexpr auto kOp = "symmetric_kl_backward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef);
  TensorRef grad, logits, delta, dlogits, ddelta;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct KlFisher {
  static constexpr auto kOp = "symmetric_kl_fisher";
  using Signature = void(TensorRef, TensorRef, TensorRef);
  TensorRef logits, tangent;
  TensorRef out;  // float32, of the shape of logits

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// other is delta or tangent.
inline void check_kl_inputs(const char* op, TensorRef logits, const char* other_name,
                            TensorRef other, at::DeviceType device) {
  check_compute_dtype(op, "logits", logits, device);
  check_compute_dtype(op, other_name, other, device);
  check_tensor(op, "logits", logits, logits.scalar_type(), "[num_examples, num_classes >= 1]",
               logits.dim() == 2 && logits.sym_size(1) >= 1);
  check_tensor(op, other_name, other, other.scalar_type(), "of logits",
               other.sym_sizes() == logits.sym_sizes());
  check_device(op, "logits", logits, device);
  check_device(op, other_name, other, device);
}

inline WriteSet KlForward::check(at::DeviceType device) const {
  check_kl_inputs(kOp, logits, "delta", delta, device);
  check_written(kOp, "out", out, at::kFloat, "[num_examples]",
                out.dim() == 1 && out.sym_size(0) == logits.sym_size(0), device);
  return {kOp, {{"out", out}}, {{"logits", logits}, {"delta", delta}}};
}

inline WriteSet KlBackward::check(at::DeviceType device) const {
  check_kl_inputs(kOp, logits, "delta", delta, device);
  check_tensor(kOp, "grad", grad, at::kFloat, "[num_examples]",
               grad.defined() && grad.dim() == 1 && grad.sym_size(0) == logits.sym_size(0));
  check_device(kOp, "grad", grad, device);
  check_written(kOp, "dlogits", dlogits, logits.scalar_type(), "of logits",
                dlogits.sym_sizes() == logits.sym_sizes(), device);
  check_written(kOp, "ddelta", ddelta, delta.scalar_type(), "of delta",
                ddelta.sym_sizes() == delta.sym_sizes(), device);
  return {kOp,
          {{"dlogits", dlogits}, {"ddelta", ddelta}},
          {{"grad", grad}, {"logits", logits}, {"delta", delta}}};
}

inline WriteSet KlFisher::check(at::DeviceType device) const {
  check_kl_inputs(kOp, logits, "tangent", tangent, device);
  check_written(kOp, "out", out, at::kFloat, "of logits", out.sym_sizes() == logits.sym_sizes(),
                device);
  return {kOp, {{"out", out}}, {{"logits", logits}, {"tangent", tangent}}};
}

}  // namespace sbrrt
