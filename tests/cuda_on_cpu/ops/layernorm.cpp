// dropout_add_layernorm's launchers, for tests/cuda_on_cpu/kernels.
#include "cuda/layernorm.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

#define RESIDUAL                                                                               \
  int64_t num_rows, int64_t width, int64_t x_type, int64_t residual_type, const void *x,       \
      int64_t x_stride, const void *residual, int64_t residual_stride, const float *bias, double p, \
      const int64_t *rng, int64_t site, const int64_t *offsets
#define MAKE_RESIDUAL                                                                      \
  {num_rows,      static_cast<int>(width),     element(x_type), element(residual_type),    \
   {x, x_stride}, {residual, residual_stride}, bias,            dropout_of(p, rng, site, offsets)}

cudaError_t forward(RESIDUAL, const float* weight, const float* shift, double eps, void* out,
                    int64_t out_stride, void* low, int64_t low_stride, float* mean, float* rstd,
                    int64_t num_tangents, const void* x_tangent, int64_t x_tangent_stride,
                    const void* residual_tangent, int64_t residual_tangent_stride,
                    void* out_tangent, int64_t out_tangent_stride, void* low_tangent,
                    int64_t low_tangent_stride) {
  return layernorm_forward({MAKE_RESIDUAL,
                            weight,
                            shift,
                            static_cast<float>(eps),
                            {out, out_stride},
                            {low, low_stride},
                            mean,
                            rstd,
                            {num_tangents,
                             {x_tangent, x_tangent_stride},
                             {residual_tangent, residual_tangent_stride},
                             {out_tangent, out_tangent_stride},
                             {low_tangent, low_tangent_stride}}},
                           nullptr);
}

cudaError_t backward(RESIDUAL, const void* grad, int64_t grad_stride, const void* product,
                     int64_t product_stride, const float* weight, const float* mean,
                     const float* rstd, void* dx, int64_t dx_stride, void* dresidual,
                     int64_t dresidual_stride, int64_t num_segments, const int32_t* segments,
                     float* sums, int64_t sums_stride) {
  return layernorm_backward({MAKE_RESIDUAL,
                             {grad, grad_stride},
                             {product, product_stride},
                             weight,
                             mean,
                             rstd,
                             {dx, dx_stride},
                             {dresidual, dresidual_stride},
                             num_segments,
                             segments,
                             {sums, sums_stride}},
                            nullptr);
}

cudaError_t jvp(RESIDUAL, const void* x_tangent, int64_t x_tangent_stride,
                const void* residual_tangent, int64_t residual_tangent_stride,
                const float* weight, const float* mean, const float* rstd, void* out,
                int64_t out_stride, void* low, int64_t low_stride) {
  return layernorm_jvp({MAKE_RESIDUAL,
                        {x_tangent, x_tangent_stride},
                        {residual_tangent, residual_tangent_stride},
                        weight,
                        mean,
                        rstd,
                        {out, out_stride},
                        {low, low_stride}},
                       nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(backward)
CUDA_ON_CPU_EXPORT(jvp)
