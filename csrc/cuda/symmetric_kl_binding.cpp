// symmetric_kl on CUDA: from tensors to the launchers of symmetric_kl.h.
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "common/symmetric_kl_checks.h"
#include "cuda/binding.h"
#include "cuda/symmetric_kl.h"

namespace sbrrt::cuda::symmetric_kl_binding {
namespace {

KlTensor kl_tensor(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), element_type(tensor)};
}

KlParams kl_params(const char* op, const at::Tensor& logits, const at::Tensor& other) {
  TORCH_CHECK_VALUE(logits.size(1) <= std::numeric_limits<int>::max(), "sbrrt::", op,
                    ": there may be at most 2^31 - 1 classes, got ", logits.size(1));
  return {logits.size(0), static_cast<int>(logits.size(1)), kl_tensor(logits), kl_tensor(other)};
}

at::Tensor forward(const at::Tensor& logits, const at::Tensor& delta) {
  constexpr auto op = "symmetric_kl_forward";
  check_kl_inputs(op, logits, "delta", delta, at::kCUDA);
  const Launch launch(op, logits, {delta});
  const at::Tensor out = empty_floats({logits.size(0)}, logits);
  launch(&symmetric_kl_forward,
         KlForwardParams{kl_params(op, logits, delta), out.mutable_data_ptr<float>()});
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& logits,
                                            const at::Tensor& delta) {
  constexpr auto op = "symmetric_kl_backward";
  check_kl_inputs(op, logits, "delta", delta, at::kCUDA);
  check_kl_gradient(grad, logits, at::kCUDA);
  const Launch launch(op, logits, {delta, grad});
  const at::Tensor dlogits = at::empty(logits.sizes(), logits.options());
  const at::Tensor ddelta = at::empty(delta.sizes(), delta.options());
  launch(&symmetric_kl_backward,
         KlBackwardParams{kl_params(op, logits, delta), grad.const_data_ptr<float>(),
                          grad.stride(0), dlogits.mutable_data_ptr(), ddelta.mutable_data_ptr()});
  return {dlogits, ddelta};
}

at::Tensor fisher(const at::Tensor& logits, const at::Tensor& tangent) {
  constexpr auto op = "symmetric_kl_fisher";
  check_kl_inputs(op, logits, "tangent", tangent, at::kCUDA);
  const Launch launch(op, logits, {tangent});
  const at::Tensor out = empty_floats(logits.sizes(), logits);
  launch(&symmetric_kl_fisher,
         KlFisherParams{kl_params(op, logits, tangent), out.mutable_data_ptr<float>()});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("symmetric_kl_forward", &forward);
  m.impl("symmetric_kl_backward", &backward);
  m.impl("symmetric_kl_fisher", &fisher);
}

}  // namespace sbrrt::cuda::symmetric_kl_binding
