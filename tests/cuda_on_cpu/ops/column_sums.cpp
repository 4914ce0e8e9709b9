// column_sums' launcher, for tests/cuda_on_cpu/kernels.
#include "cuda/column_sums.h"

#include <cuda_on_cpu/export.h>

using namespace sbrrt::cuda;

namespace {

cudaError_t sums(const float* partial, int64_t num_blocks, int64_t width, int64_t num_parts,
                 float* first, float* second, float* third) {
  return column_sums(
      {partial, num_blocks, width, static_cast<int>(num_parts), {first, second, third}}, nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(sums)
