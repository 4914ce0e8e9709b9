// symmetric_kl's launchers, for tests/cuda_on_cpu/kernels.
#include "cuda/symmetric_kl.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

#define EXAMPLES                                                                                \
  int64_t num_examples, int64_t num_classes, const void *logits, int64_t logits_row,            \
      int64_t logits_class, int64_t logits_type, const void *other, int64_t other_row,          \
      int64_t other_class, int64_t other_type
#define MAKE_EXAMPLES                                                           \
  {num_examples,                                                                \
   static_cast<int>(num_classes),                                               \
   {logits, logits_row, logits_class, element(logits_type)},                    \
   {other, other_row, other_class, element(other_type)}}

cudaError_t forward(EXAMPLES, float* out) {
  return symmetric_kl_forward({MAKE_EXAMPLES, out}, nullptr);
}

cudaError_t backward(EXAMPLES, const float* grad, int64_t grad_stride, void* dlogits,
                     void* ddelta) {
  return symmetric_kl_backward({MAKE_EXAMPLES, grad, grad_stride, dlogits, ddelta}, nullptr);
}

cudaError_t fisher(EXAMPLES, float* out) {
  return symmetric_kl_fisher({MAKE_EXAMPLES, out}, nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(backward)
CUDA_ON_CPU_EXPORT(fisher)
