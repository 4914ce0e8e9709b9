// Checks and result shapes of SMART's ops (smart_ascend, smart_noise, symmetric_kl), for tracing; no
// memory is read.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/SymBool.h>
#include <torch/library.h>

#include "common/smart_ascend_checks.h"
#include "common/symmetric_kl_checks.h"

namespace sbrrt::meta_smart {
namespace {

at::Tensor smart_ascend_meta(const at::Tensor& delta, const at::Tensor& gradient,
                             const at::Tensor& mask, const at::Tensor& sequence, c10::SymInt,
                             double step_size, bool normalize_gradient,
                             c10::string_view projection, double radius, c10::string_view norm,
                             c10::string_view level) {
  check_ascend_tensors(delta, gradient, mask, sequence, at::kMeta);
  ascend_options(step_size, normalize_gradient, projection, radius, norm, level);
  return at::empty_symint(delta.sym_sizes(), delta.options());
}

at::Tensor smart_noise_meta(const at::Tensor& offsets, c10::SymInt width, const at::Tensor& rng,
                            int64_t) {
  constexpr auto op = "smart_noise";
  check_offsets(op, offsets);
  check_rng(op, rng);
  check_device(op, "offsets", offsets, at::kMeta);
  check_device(op, "rng", rng, at::kMeta);
  TORCH_SYM_CHECK(width.sym_ge(4).sym_and((width % 4).sym_eq(0)), "sbrrt::", op,
                  ": width must be a positive multiple of 4");
  return at::empty_symint({offsets.sym_size(0), width}, offsets.options().dtype(at::kFloat));
}

at::Tensor symmetric_kl_forward_meta(const at::Tensor& logits, const at::Tensor& delta) {
  check_kl_inputs("symmetric_kl_forward", logits, "delta", delta, at::kMeta);
  return at::empty_symint({logits.sym_size(0)}, logits.options().dtype(at::kFloat));
}

std::tuple<at::Tensor, at::Tensor> symmetric_kl_backward_meta(const at::Tensor& grad,
                                                              const at::Tensor& logits,
                                                              const at::Tensor& delta) {
  check_kl_inputs("symmetric_kl_backward", logits, "delta", delta, at::kMeta);
  check_kl_gradient(grad, logits, at::kMeta);
  return {at::empty_symint(logits.sym_sizes(), logits.options()),
          at::empty_symint(delta.sym_sizes(), delta.options())};
}

at::Tensor symmetric_kl_fisher_meta(const at::Tensor& logits, const at::Tensor& tangent) {
  check_kl_inputs("symmetric_kl_fisher", logits, "tangent", tangent, at::kMeta);
  return at::empty_symint(logits.sym_sizes(), logits.options().dtype(at::kFloat));
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("smart_ascend", &smart_ascend_meta);
  m.impl("smart_noise", &smart_noise_meta);
  m.impl("symmetric_kl_forward", &symmetric_kl_forward_meta);
  m.impl("symmetric_kl_backward", &symmetric_kl_backward_meta);
  m.impl("symmetric_kl_fisher", &symmetric_kl_fisher_meta);
}

}  // namespace sbrrt::meta_smart
