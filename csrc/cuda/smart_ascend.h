// smart_ascend on CUDA: what its kernel is given, and its launcher.
#pragma once

#include <cuda_runtime.h>

#include "common/ascend_options.h"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

struct AscendParams {
  AscendOptions options;
  int64_t num_tokens, num_sequences;
  int width;
  Dtype delta_dtype, gradient_dtype;
  ConstRows delta, gradient;
  const bool* mask;         // [num_tokens], tokens that may be perturbed
  const int64_t* sequence;  // [num_tokens]; tokens of no sequence get 0
  void* out;                // [num_tokens, width], dense, of the dtype of delta
};

cudaError_t smart_ascend(const AscendParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
