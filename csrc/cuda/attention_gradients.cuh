// What a warp does in attention's backward pass: 16 queries against a chunk of keys gives the rows'
// statistics and the gradient of Q; 16 keys against a chunk of queries those of K and V.
#pragma once

#include "cuda/attention_tile.cuh"

namespace sbrrt::cuda {

// What the second half needs of a query: an exponent's shift, the mean of softmax's derivative and
// the factor that makes its probabilities sum to 1; all zero where there is no query.
using QueryStatistics = Vec<float, 4>;
constexpr int kKeptWords = 4, kKeptKeys = 32 * kKeptWords;  // of a query: bits of so many keys
static_assert(kKeptKeys == kMaxShortKeys);

// A warp's 16 queries while chunks of keys are worked in. The gradient is relative to the mean so
// far; `keys`, the keys weighed by probabilities, which it takes to move that mean, is kept where
// another chunk may come.
template <int kDim>
struct QueryRows {
  RowMeans means;
  float grad[kDim / 8][4] = {}, keys[kDim / 8][4] = {};
};

template <int kTiles>
__device__ void drop(float (&x)[kTiles][4], const Kept<kTiles>& kept, int num_keys) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[j][i] = kept(j, i) ? x[j][i] : 0.f;
  }
}

// x -> p (x - mean): the gradient of scores but for the factors that come last.
template <int kTiles>
__device__ void centre(float (&x)[kTiles][4], const float (&p)[kTiles][4], const float (&mean)[2],
                       int num_keys) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[j][i] = p[j][i] * (x[j][i] - mean[i / 2]);
  }
}

// Works in a chunk of keys; kOnly where there is no other one.
template <bool kOnly, typename T, int kDim, int kTiles>
__device__ void query_step(QueryRows<kDim>& rows, const T* query, const T* grad, const T* key,
                           const T* value, const float (&shift)[2], const Kept<kTiles>& kept,
                           bool is_first, int num_keys) {
  float p[kTiles][4] = {}, x[kTiles][4] = {}, step[2];
  multiply_rows<kDim>(p, query, key, num_keys);
  multiply_rows<kDim>(x, grad, value, num_keys);
  exponentiate<kDim>(p, shift, num_keys);
  drop(x, kept, num_keys);
  if (is_first) rows.means.start(x);
  rows.means.add(p, x, num_keys, step);
  if constexpr (!kOnly) subtract(rows.grad, step, rows.keys);
  centre(x, p, rows.means.mean, num_keys);
  multiply_tiles<kDim>(rows.grad, x, key, num_keys);
  if constexpr (!kOnly) multiply_tiles<kDim>(rows.keys, p, key, num_keys);
}

// Bits of the chunk's keys, for all four lanes of a row together, to words[query][stride].
template <int kTiles>
__device__ void store_kept(uint32_t* words, int64_t stride, const Kept<kTiles>& kept,
                           int num_queries) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile_row() + 8 * half;
#pragma unroll
    for (int w = 0; w < kTiles / 4; ++w) {
      uint32_t word = kept.words[w][half];
      word |= __shfl_xor_sync(kFullMask, word, 1);
      word |= __shfl_xor_sync(kFullMask, word, 2);
      if (tile_column() == 0 && row < num_queries) words[row * stride + w] = word;
    }
  }
}

// To statistics[query][stride]; zeros for the rows of a tile that are no queries.
__device__ inline void store_statistics(float* statistics, int64_t stride, const RowMeans& means,
                                        const float (&shift)[2], int num_queries, int num_rows) {
  if (tile_column() != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile_row() + 8 * half;
    if (row >= num_rows) continue;
    const bool valid = row < num_queries;
    store(statistics + row * stride,
          valid ? QueryStatistics{shift[half], means.mean[half], 1.f / means.total[half], 0.f}
                : QueryStatistics{});
  }
}

template <typename T, int kDim>
__device__ void query_finish(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                             int first_query, const QueryRows<kDim>& rows) {
  const float scale = p.batch.dropout.scale * kScoreScale<kDim>;
  const float factor[2] = {scale / rows.means.total[0], scale / rows.means.total[1]};
  store_rows<T, kDim>(p.query_grad, sequence, head, first_query, rows.grad, factor);
}

// What the second half reads of a chunk of queries, in shared memory.
template <typename T>
struct QueryChunk {
  const T *query, *grad;
  const float* statistics;  // [query][4]
  const uint32_t* kept;     // [query][kKeptWords]
};

template <int kDim>
struct KeyRows {
  float key_grad[kDim / 8][4] = {}, value_grad[kDim / 8][4] = {};
};

// Transposed scores and their gradients: p -> M P, x -> P (M x - mean). `first_key` is the tile's
// place among the kKeptKeys keys of `kept`.
template <int kDim, int kTiles, typename T>
__device__ void differentiate(float (&p)[kTiles][4], float (&x)[kTiles][4],
                              const QueryChunk<T>& queries, int first_key, int num_queries,
                              bool has_dropout) {
  const int bit = first_key % 32 + tile_row();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_queries) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = 8 * j + tile_column() + i;
      const QueryStatistics s = load<4>(queries.statistics + 4 * query);
      const uint32_t* words = queries.kept + query * kKeptWords;
      const uint32_t word = has_dropout ? words[first_key / 32] >> bit : ~uint32_t{0};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float &score = p[j][2 * half + i], &grad = x[j][2 * half + i];
        const bool kept = word >> 8 * half & 1;
        const float share =
            exp2f(fmaf(score, kScoreScale<kDim> * kLog2E, -s[0])) * s[2];
        grad = share * ((kept ? grad : 0.f) - s[1]);
        score = kept ? share : 0.f;
      }
    }
  }
}

// Works in a chunk of queries for a warp's 16 keys.
template <int kTiles, typename T, int kDim>
__device__ void key_step(KeyRows<kDim>& rows, const T* key, const T* value,
                         const QueryChunk<T>& queries, int first_key, int num_queries,
                         bool has_dropout) {
  float p[kTiles][4] = {}, x[kTiles][4] = {};
  multiply_rows<kDim>(p, key, queries.query, num_queries);
  multiply_rows<kDim>(x, value, queries.grad, num_queries);
  differentiate<kDim>(p, x, queries, first_key, num_queries, has_dropout);
  multiply_tiles<kDim>(rows.value_grad, p, queries.grad, num_queries);
  multiply_tiles<kDim>(rows.key_grad, x, queries.query, num_queries);
}

template <typename T, int kDim>
__device__ void key_finish(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                           int first_key, const KeyRows<kDim>& rows) {
  const float value_factor[2] = {p.batch.dropout.scale, p.batch.dropout.scale};
  const float key_factor[2] = {p.batch.dropout.scale * kScoreScale<kDim>,
                               p.batch.dropout.scale * kScoreScale<kDim>};
  store_rows<T, kDim>(p.value_grad, sequence, head, first_key, rows.value_grad, value_factor);
  store_rows<T, kDim>(p.key_grad, sequence, head, first_key, rows.key_grad, key_factor);
}

}  // namespace sbrrt::cuda
