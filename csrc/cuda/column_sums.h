// Sums over the blocks of rows that other kernels left, on CUDA.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sbrrt::cuda {

constexpr int kMaxColumnSums = 3;

// The sums of several parts of a matrix's columns, `width` each.
struct ColumnSumsParams {
  const float* partial;  // [num_blocks, num_parts * width]
  int64_t num_blocks, width;
  int num_parts;
  float* out[kMaxColumnSums];  // [width] each, or null
};

cudaError_t column_sums(const ColumnSumsParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
