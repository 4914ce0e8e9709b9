// Packed multi-head attention on CUDA: what crosses from tensors to kernels. No torch header.
// The mathematics: docs/math/attention.md; how tiles map to warps: docs/kernels.md.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/element_type.h"

namespace sbrrt::cuda {

// [num_tokens, num_heads * head_dim]; columns are contiguous, every row begins on a multiple of 16
// bytes. The stride counts elements.
struct AttentionRows {
  const void* data;
  int64_t stride;
};

struct AttentionResult {
  void* data;
  int64_t stride;
};

struct AttentionBatch {
  const int32_t* cu_seqlens;  // [num_sequences + 1]
  const int64_t* rows;        // [num_sequences]
  int64_t num_sequences, num_tokens, max_length;
  int num_heads, head_dim;
  ElementType element;
  // Dropout: seed and step in device memory, words below the threshold are dropped.
  const int64_t* rng;
  int64_t site, max_positions;
  uint32_t threshold;
  float kept_scale;  // 1 / (1 - p)
};

struct AttentionForwardParams {
  AttentionBatch batch;
  AttentionRows query, key, value;
  AttentionResult out;
  float* logsumexp;  // [num_tokens, num_heads]
};

struct AttentionBackwardParams {
  AttentionBatch batch;
  AttentionRows grad, query, key, value;
  const float* logsumexp;
  AttentionResult query_grad, key_grad, value_grad;
  void* workspace;  // of attention_backward_workspace bytes, aligned to 16
};

struct AttentionTangentParams {
  AttentionBatch batch;
  AttentionRows query, key, value, query_tangent, key_tangent, value_tangent;
  const float* logsumexp;
  AttentionResult out_tangent;
};

size_t attention_backward_workspace(const AttentionBatch& batch);

cudaError_t attention_forward(const AttentionForwardParams& params, cudaStream_t stream);
cudaError_t attention_backward(const AttentionBackwardParams& params, cudaStream_t stream);
cudaError_t attention_jvp(const AttentionTangentParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
