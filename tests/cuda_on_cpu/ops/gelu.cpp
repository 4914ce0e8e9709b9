// bias_gelu's launchers, for tests/cuda_on_cpu/kernels.
#include "cuda/gelu.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

cudaError_t forward(int64_t num_rows, int64_t width, int64_t type, const void* x, int64_t x_stride,
                    const float* bias, void* out, int64_t out_stride, int64_t num_tangents,
                    const void* x_tangent, int64_t x_tangent_stride, void* out_tangent,
                    int64_t out_tangent_stride) {
  return gelu_forward({num_rows,
                       width,
                       element(type),
                       {x, x_stride},
                       bias,
                       {out, out_stride},
                       {num_tangents,
                        {x_tangent, x_tangent_stride},
                        {out_tangent, out_tangent_stride}}},
                      nullptr);
}

cudaError_t grad(int64_t num_rows, int64_t width, int64_t type, const void* x, int64_t x_stride,
                 const void* from, int64_t from_stride, const float* bias, void* out,
                 int64_t out_stride, float* partial) {
  return gelu_grad({num_rows,
                    width,
                    element(type),
                    {x, x_stride},
                    {from, from_stride},
                    bias,
                    {out, out_stride},
                    partial},
                   nullptr);
}

cudaError_t row_blocks(int64_t num_rows, int64_t* count) {
  *count = gelu_row_blocks(num_rows);
  return cudaSuccess;
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(grad)
CUDA_ON_CPU_EXPORT(row_blocks)
