// symmetric_kl on CUDA: from tensors to the launchers of symmetric_kl.h.
#include <limits>

#include "common/symmetric_kl_op.h"
#include "cuda/binding.h"
#include "cuda/symmetric_kl.h"

namespace sbrrt {

using namespace cuda;

namespace {

KlTensor kl_tensor(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), element_type(tensor)};
}

KlParams kl_params(const char* op, const at::Tensor& logits, const at::Tensor& other) {
  TORCH_CHECK_VALUE(logits.size(1) <= std::numeric_limits<int>::max(), "sbrrt::", op,
                    ": there may be at most 2^31 - 1 classes, got ", logits.size(1));
  return {logits.size(0), static_cast<int>(logits.size(1)), kl_tensor(logits), kl_tensor(other)};
}

}  // namespace

void KlForward::run_cuda() const {
  const Launch launch(kOp, logits, {delta, out});
  launch(&symmetric_kl_forward,
         KlForwardParams{kl_params(kOp, logits, delta), out.mutable_data_ptr<float>()});
}

void KlBackward::run_cuda() const {
  const Launch launch(kOp, logits, {delta, grad, dlogits, ddelta});
  launch(&symmetric_kl_backward,
         KlBackwardParams{kl_params(kOp, logits, delta), grad.const_data_ptr<float>(),
                          grad.stride(0), dlogits.mutable_data_ptr(), ddelta.mutable_data_ptr()});
}

void KlFisher::run_cuda() const {
  const Launch launch(kOp, logits, {tangent, out});
  launch(&symmetric_kl_fisher,
         KlFisherParams{kl_params(kOp, logits, tangent), out.mutable_data_ptr<float>()});
}

}  // namespace sbrrt
