// The launchers of adamw_ema_ and adamw_ema_rows_, for tests/cuda_on_cpu/kernels. Tables of tensors
// come as arrays of device addresses.
#include "cuda/adamw.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

#define NUMBERS                                                                           \
  const void *learning_rate, int64_t rate_stride, int64_t rate_is_double,                 \
      const float *clip_factor, const void *step, int64_t step_stride,                    \
      int64_t step_is_integer, double beta1, double beta2, double eps, double ema_beta
#define MAKE_NUMBERS                                                              \
  {learning_rate, rate_stride, rate_is_double != 0, clip_factor, step, step_stride, \
   step_is_integer != 0, beta1, beta2, eps, ema_beta}

// addresses [num_tensors, 7]: param, moments, ema, copies, gradient.
AdamwTensor tensor_of(const int64_t* addresses, int64_t size, double weight_decay) {
  const auto floats = [&](int i) { return reinterpret_cast<float*>(addresses[i]); };
  const auto bytes = [&](int i) { return reinterpret_cast<void*>(addresses[i]); };
  return {floats(0), floats(1), floats(2), floats(3),   bytes(4),
          bytes(5),  bytes(6),  size,      weight_decay};
}

// The arrays are the host's.
cudaError_t update(NUMBERS, int64_t num_tensors, int64_t addresses, int64_t sizes,
                   int64_t grad_types, int64_t weight_decay) {
  static AdamwParams params;
  params.numbers = MAKE_NUMBERS;
  params.num_tensors = static_cast<int>(num_tensors);
  params.first_block[0] = 0;
  for (int64_t i = 0; i < num_tensors; ++i) {
    const int64_t size = reinterpret_cast<const int64_t*>(sizes)[i];
    params.tensors[i] = tensor_of(reinterpret_cast<const int64_t*>(addresses) + 7 * i, size,
                                  reinterpret_cast<const double*>(weight_decay)[i]);
    params.grad_dtype[i] = element(reinterpret_cast<const int64_t*>(grad_types)[i]);
    params.first_block[i + 1] = params.first_block[i] + static_cast<int32_t>(num_pieces(size));
  }
  return adamw_ema(params, nullptr);
}

cudaError_t update_rows(NUMBERS, float* param, float* exp_avg, float* exp_avg_sq, float* ema,
                        const float* grad, double weight_decay, int64_t num_rows, int64_t width,
                        int64_t count, const int64_t* rows, bool* touched) {
  const AdamwTensor tensor{param,   exp_avg, exp_avg_sq,       ema,         nullptr,
                           nullptr, grad,    num_rows * width, weight_decay};
  return adamw_ema_rows({MAKE_NUMBERS, tensor, num_rows, width, count, rows, touched}, nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(update)
CUDA_ON_CPU_EXPORT(update_rows)
