// Packed multi-head attention on CUDA: what crosses from tensors to kernels. No torch header.
// The mathematics: docs/math/attention.md; how tiles map to warps: docs/kernels.md.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

struct AttentionBatch {
  const int32_t* cu_seqlens;  // [num_sequences + 1]
  const int64_t* rows;        // [num_sequences]
  int64_t num_sequences, num_tokens, max_length, max_positions;
  int num_heads, head_dim;
  ElementType dtype;
  DropoutParams dropout;  // of probabilities
};

// The rows below are [num_tokens, num_heads * head_dim]; each begins on a multiple of 16 bytes.

struct AttentionForwardParams {
  AttentionBatch batch;
  ConstRows query, key, value;
  Rows out;
  float* logsumexp;  // [num_tokens, num_heads]
};

struct AttentionBackwardParams {
  AttentionBatch batch;
  ConstRows grad, query, key, value;
  const float* logsumexp;
  Rows query_grad, key_grad, value_grad;
  void* workspace;  // of attention_backward_workspace bytes, aligned to 16
};

struct AttentionJvpParams {
  AttentionBatch batch;
  ConstRows query, key, value, query_tangent, key_tangent, value_tangent;
  const float* logsumexp;
  Rows out_tangent;
};

size_t attention_backward_workspace(const AttentionBatch& batch);

cudaError_t attention_forward(const AttentionForwardParams& params, cudaStream_t stream);
cudaError_t attention_backward(const AttentionBackwardParams& params, cudaStream_t stream);
cudaError_t attention_jvp(const AttentionJvpParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
