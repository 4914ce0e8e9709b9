// Sums over the blocks of rows that other kernels left, on CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sbrrt::cuda {

struct ColumnSumsParams {
  const float* partial;  // [num_blocks, width]
  int64_t num_blocks, width;
  float* out;  // [width]
};

cudaError_t column_sums(const ColumnSumsParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
