// What attention's kernels are given, free of instruction sets.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "common/philox.h"

namespace sbrrt {

// Rows of a matrix with contiguous columns.
template <typename T>
struct RowView {
  T* data;
  int64_t stride;

  RowView at(int64_t row, int64_t column) const { return {data + row * stride + column, stride}; }
};

struct AttentionDropout {
  PhiloxStream stream;
  uint32_t threshold;  // words below it are dropped
  float scale;         // of what is kept: 1 / (1 - p)
  bool active;
};

struct AttentionProblem {
  int num_heads, head_dim;
  int64_t max_positions;
  AttentionDropout dropout;
  float score_scale;  // 1 / sqrt(head_dim)
};

// One head of one sequence.
struct AttentionPair {
  int64_t first_token;
  int length;
  int head;
  uint64_t element;  // dropout's index of its probability (query 0, key 0)
};

template <typename T>
struct ForwardMatrices {
  RowView<const T> query, key, value;
  RowView<T> out;
  float* logsumexp;  // [num_tokens, num_heads]
};

template <typename T>
struct BackwardMatrices {
  RowView<const T> grad, query, key, value;
  const float* logsumexp;
  RowView<T> query_grad, key_grad, value_grad;
};

template <typename T>
struct JvpMatrices {
  RowView<const T> query, key, value, query_tangent, key_tangent, value_tangent;
  const float* logsumexp;
  RowView<T> out_tangent;
};

// Uninitialised memory on a cache line's boundary that grows and is kept from pair to pair.
template <typename T>
class Buffer {
 public:
  T* of(size_t count) {
    if (count > capacity_) {
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Delete> memory_;
  size_t capacity_ = 0;
};

using Pair = uint32_t;  // two bfloat16, neighbouring terms of a sum

// A thread's memory for products of bfloat16 (attention_pairs.h).
struct PairScratch {
  Buffer<at::BFloat16> keys, values;
  Buffer<Pair> query_columns, grad_columns;
  Buffer<Pair> query_rows, grad_rows, key_rows, tangent_rows;
  Buffer<at::BFloat16> weights, weight_grads;  // [keys, queries of a block]
  Buffer<Pair> weight_pairs, tangent_pairs;    // of neighbouring keys
  Buffer<uint16_t> kept;
};

// One thread's memory. "Columns" are transposed: [head_dim, queries of a block].
struct AttentionScratch {
  Buffer<float> query_columns, grad_columns;
  Buffer<float> queries, keys, values, grads, key_tangents, value_tangents;
  Buffer<float> scores, score_grads, scales, logsumexp;
  Buffer<float> result, key_result, value_result;
  Buffer<uint64_t> blocks;
  Buffer<uint32_t> words, shifted_words;
  PairScratch pairs;
};

}  // namespace sbrrt
