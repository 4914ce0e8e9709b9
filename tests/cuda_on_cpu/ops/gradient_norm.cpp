// gradient_norm's launcher, for tests/cuda_on_cpu/kernels.
#include "cuda/adamw.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

// addresses, sizes and types [num_tensors] are the host's; per_launch of them go into each launch.
cudaError_t norm(double max_norm, int64_t num_tensors, int64_t addresses, int64_t sizes,
                 int64_t types, int64_t per_launch, int64_t num_partial, int64_t* partial,
                 int32_t* ticket, float* out) {
  static GradientNormParams params;
  params.max_norm = max_norm;
  params.num_partial = num_partial;
  params.partial = reinterpret_cast<unsigned long long*>(partial);
  params.ticket = reinterpret_cast<unsigned*>(ticket);
  params.out = out;
  params.partial_begin = 0;
  for (int64_t first = 0; first < num_tensors; first += per_launch) {
    const int64_t left = num_tensors - first, count = left < per_launch ? left : per_launch;
    params.num_tensors = static_cast<int>(count);
    params.first_block[0] = 0;
    for (int64_t i = 0; i < count; ++i) {
      params.data[i] = reinterpret_cast<const void*>(
          reinterpret_cast<const int64_t*>(addresses)[first + i]);
      params.size[i] = reinterpret_cast<const int64_t*>(sizes)[first + i];
      params.dtype[i] = element(reinterpret_cast<const int64_t*>(types)[first + i]);
      params.first_block[i + 1] =
          params.first_block[i] + static_cast<int32_t>(num_pieces(params.size[i]));
    }
    const cudaError_t error = gradient_norm(params, nullptr);
    if (error != cudaSuccess) return error;
    params.partial_begin += params.first_block[count];
  }
  return cudaSuccess;
}

}  // namespace

CUDA_ON_CPU_EXPORT(norm)
