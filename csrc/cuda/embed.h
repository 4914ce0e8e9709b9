// embed on CUDA: what its kernels are given, and their launchers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/params.h"

namespace sbrrt::cuda {

constexpr int64_t kMaxEmbedWidth = 2048;

struct EmbedTable {
  ConstRows rows;
  int64_t num_rows;
  const int64_t* indices;  // [num_tokens]
};

// s = word[id] + position[p] + type[t]. Tokens with an index outside its table have s = NaN.
struct EmbedParams {
  int64_t num_tokens;
  int width;
  ElementType dtype;  // of the tables
  EmbedTable tables[3];
  RowDropoutParams dropout;
};

// out = M LN(s)
struct EmbedForwardParams {
  EmbedParams in;
  const float *weight, *shift;  // [width]
  float eps;
  Rows out;            // of the tables' dtype
  float *mean, *rstd;  // [num_tokens]
};

struct EmbedBackwardParams {
  EmbedParams in;
  ConstRows grad;  // of the tables' dtype
  const float *weight, *mean, *rstd;
  float* ds;       // [num_tokens, width], the gradient of s
  float* partial;  // [num_row_blocks, 2, width]: sums for weight and shift
};

// Tokens that one warp sums.
constexpr int kTokensPerChunk = 32;

SBRRT_HOST_DEVICE constexpr int64_t num_token_chunks(int64_t num_tokens) {
  return (num_tokens + kTokensPerChunk - 1) / kTokensPerChunk;
}

// The sums of ds over the tokens that read a row of a table.
struct TableGradient {
  const int64_t* indices;  // [num_tokens]
  const int64_t* order;    // [num_tokens], tokens by ascending index, those of one index ascending
  int64_t num_rows;
  void* out;  // [num_rows, width], dense; or null
};

struct EmbedTablesParams {
  int64_t num_tokens;
  int width;
  ElementType dtype;  // of the gradients
  const float* ds;
  float* partial;  // [3, num_token_chunks, 2, width]: sums of rows that lie in several chunks
  TableGradient tables[3];
};

// Whether `out` must hold zeros before: rows that no token reads are then not written.
SBRRT_HOST_DEVICE inline bool needs_zeros(int64_t num_tokens, int64_t num_rows) { return num_rows > num_tokens; }

// cudaErrorInvalidValue for rows wider than kMaxEmbedWidth.
cudaError_t embed_forward(const EmbedForwardParams& params, cudaStream_t stream);
cudaError_t embed_backward(const EmbedBackwardParams& params, cudaStream_t stream);
cudaError_t embed_tables(const EmbedTablesParams& params, cudaStream_t stream);

}  // namespace sbrrt::cuda
