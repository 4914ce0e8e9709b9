// dropout_mask, philox_bits and smart_noise on CUDA: what their kernels are given, and launchers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sbrrt::cuda {

// Element (n, j) has the logical index offsets[n] + j.
struct PhiloxRowsParams {
  int64_t num_rows, width;
  const int64_t *rng, *offsets;  // [2] seed and step; [num_rows]
  int64_t site;
  void* out;  // [num_rows, width], dense
};

// An element becomes `kept_bits` where its word is at least `threshold`, else 0.
struct DropoutMaskParams {
  PhiloxRowsParams rows;
  uint32_t threshold;
  uint64_t kept_bits;  // of a floating-point number
  int item_size;       // its bytes: 2, 4 or 8
};

cudaError_t dropout_mask(const DropoutMaskParams& params, cudaStream_t stream);
cudaError_t philox_bits(const PhiloxRowsParams& params, cudaStream_t stream);  // uint32 words
// Standard normal numbers, float; the width is a multiple of 4.
cudaError_t smart_noise(const PhiloxRowsParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
