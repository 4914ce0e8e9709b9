// column_sums' launcher, for tests/cuda_on_cpu/kernels.
#include "cuda/column_sums.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

cudaError_t sums(int64_t num_layers, int64_t num_rows, int64_t width, int64_t type, const void* x,
                 int64_t layer_stride, int64_t row_stride, const float* weights,
                 int64_t num_weights, float* out,
                 int64_t out_stride, float* second) {
  return column_sums({element(type),
                      num_layers,
                      num_rows,
                      width,
                      {x, row_stride},
                      layer_stride,
                      weights,
                      num_weights,
                      {out, second},
                      out_stride},
                     nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(sums)
