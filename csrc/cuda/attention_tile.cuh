// What attention's kernels share: how rows come into shared memory, dropout and means over the keys
// of a tile of scores, results back to global memory.
//
// A tile of scores is 16 queries by 8 keys (transposed: 16 keys by 8 queries), a chunk is what one
// warp holds in registers: 16 by 8 * kTiles.
#pragma once

#include <cmath>

#include "common/attention.h"
#include "cuda/attention.h"
#include "cuda/attention_products.cuh"
#include "cuda/common/cp_async.cuh"
#include "cuda/common/philox.cuh"
#include "cuda/common/reduce.cuh"

namespace sbrrt::cuda {

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

template <int kDim>
constexpr float kScoreScale = kDim == 64 ? 0.125f : 0.17677669529663688f;  // 1 / sqrt(kDim)

__host__ __device__ constexpr int round_up_to_tile(int length) {
  return (length + kTile - 1) / kTile * kTile;
}

struct Sequence {
  int64_t first_token;
  int length;
};

// The host cannot see lengths; one above max_length would not fit in shared memory.
__device__ inline Sequence sequence_of(const AttentionBatch& batch, int64_t n) {
  const int first = batch.cu_seqlens[n], length = batch.cu_seqlens[n + 1] - first;
  return {first, min(max(length, 0), static_cast<int>(batch.max_length))};
}

// Begins to copy rows [first, first + count) of one head; those not below `length` become zeros.
template <typename T, int kDim>
__device__ void copy_rows(T* shared, const ConstRows& rows, const Sequence& sequence, int head,
                          int first, int count) {
  constexpr int kParts = kDim / kVecSize<T>;
  const T* data = static_cast<const T*>(rows.data) + head * kDim;
  for (int i = threadIdx.x; i < count * kParts; i += blockDim.x) {
    const int row = i / kParts, column = i % kParts * kVecSize<T>;
    const bool valid = first + row < sequence.length;
    const int64_t token = sequence.first_token + (valid ? first + row : 0);
    cp_async_16(shared + row * kRowStride<T, kDim> + column, data + token * rows.stride + column,
                valid);
  }
}

// Waits for every copy of the block.
__device__ inline void finish_copies() {
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
}

// Calls step(chunk, buffer) in order while the next chunk is copied into the other of two buffers.
template <typename Copy, typename Step>
__device__ inline void for_each_chunk(int num_chunks, Copy copy, Step step) {
  copy(0, 0);
  cp_async_commit();
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    if (chunk + 1 < num_chunks) copy(chunk + 1, (chunk + 1) % 2);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    step(chunk, chunk % 2);
    __syncthreads();
  }
}

// Rows [first, first + 16) of a head: c times each row's factor; rows not below `length` are skipped.
template <typename T, int kDim>
__device__ inline void store_rows(const Rows& result, const Sequence& sequence, int head,
                                  int first, const float (&c)[kDim / 8][4],
                                  const float (&factor)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + tile_row() + 8 * half;
    if (row >= sequence.length) continue;
    T* out = static_cast<T*>(result.data) + (sequence.first_token + row) * result.stride +
             head * kDim + tile_column();
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float* pair = c[n] + 2 * half;
      store<2>(out + 8 * n, Vec<T, 2>{from_float<T>(pair[0] * factor[half]),
                                      from_float<T>(pair[1] * factor[half])});
    }
  }
}

// Dropout of the probabilities of one (sequence, head).
struct Dropout {
  PhiloxStream stream;
  uint64_t element;  // of query 0 and key 0
  int64_t max_positions;
  uint32_t threshold;

  __device__ bool active() const { return threshold > 0; }
  __device__ bool keeps(uint64_t e) const {
    const PhiloxWords words = philox_block(e / 4, stream);
    const uint32_t low = e % 2 ? words.word[1] : words.word[0];
    const uint32_t high = e % 2 ? words.word[3] : words.word[2];
    return (e % 4 < 2 ? low : high) >= threshold;
  }
};

__device__ inline Dropout dropout_of(const AttentionBatch& batch, int64_t n, int head) {
  if (batch.dropout.threshold == 0) return {};
  return {philox_stream(batch.dropout.rng, batch.dropout.site),
          attention_element(batch.rows[n], batch.num_heads, head, batch.max_positions),
          batch.max_positions, batch.dropout.threshold};
}

// Which of this lane's four probabilities of a tile are kept, bit i for c[i].
__device__ inline uint32_t kept_of_tile(const Dropout& dropout, int first_query, int first_key) {
  const int column = first_key + tile_column();
  const uint64_t upper = dropout.element + (first_query + tile_row()) * dropout.max_positions;
  const uint64_t lower = upper + 8 * dropout.max_positions;
  if (dropout.max_positions % 4 != 0) {  // a block of words may straddle lanes
    return dropout.keeps(upper + column) | dropout.keeps(upper + column + 1) << 1 |
           dropout.keeps(lower + column) << 2 | dropout.keeps(lower + column + 1) << 3;
  }
  // Two lanes share the blocks of both rows: the even one draws the upper, the odd one the lower.
  const bool odd = lane_index() % 2;
  const PhiloxWords words = philox_block(((odd ? lower : upper) + column) / 4, dropout.stream);
  uint32_t own = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) own |= (words.word[i] >= dropout.threshold) << i;
  const uint32_t other = __shfl_xor_sync(kFullMask, own, 1);
  return odd ? other >> 2 | (own & 12) : (own & 3) | (other & 3) << 2;
}

// Which probabilities of a chunk are kept: a word for each of the lane's rows and 32 keys, in which
// the lane's own keys have their bit.
template <int kTiles>
struct Kept {
  uint32_t words[kTiles / 4][2];

  __device__ bool operator()(int tile, int i) const {
    return words[tile / 4][i / 2] >> (tile % 4 * 8 + tile_column() + i % 2) & 1;
  }
};

template <int kTiles>
__device__ inline Kept<kTiles> draw_kept(const Dropout& dropout, int first_query, int first_key,
                                         int num_keys) {
  Kept<kTiles> kept;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (j % 4 == 0) {
      kept.words[j / 4][0] = kept.words[j / 4][1] = dropout.active() ? 0 : ~uint32_t{0};
    }
    if (!dropout.active() || 8 * j >= num_keys) continue;
    const uint32_t bits = kept_of_tile(dropout, first_query, first_key + 8 * j);
    const int shift = j % 4 * 8 + tile_column();
    kept.words[j / 4][0] |= (bits & 3) << shift;
    kept.words[j / 4][1] |= bits >> 2 << shift;
  }
  return kept;
}

// Scores to probabilities but for a factor near 1: shift = logsumexp log2(e) is rounded. Zero where
// there is no key.
template <int kDim, int kTiles>
__device__ inline void exponentiate(float (&scores)[kTiles][4], const float (&shift)[2],
                                    int num_keys) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = 8 * j + tile_column() + i % 2 < num_keys;
      const float x = fmaf(scores[j][i], kScoreScale<kDim> * kLog2E, -shift[i / 2]);
      scores[j][i] = valid ? exp2f(x) : 0.f;
    }
  }
}

// The mean over keys, weighted by probabilities, that softmax's derivative subtracts; of each of the
// lane's two rows. It grows chunk by chunk, each summed relative to the mean so far (at first: to the
// first key's value, so that one key leaves exactly nothing).
struct RowMeans {
  float mean[2] = {}, total[2] = {};

  template <int kTiles>
  __device__ void start(const float (&x)[kTiles][4]) {
    const int holder = lane_index() / 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mean[half] = __shfl_sync(kFullMask, x[0][2 * half], holder);
      total[half] = 0.f;
    }
  }

  // Returns by how much the means move.
  template <int kTiles>
  __device__ void add(const float (&p)[kTiles][4], const float (&x)[kTiles][4], int num_keys,
                      float (&step)[2]) {
    float sum[2] = {}, weighted[2] = {};
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= num_keys) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i / 2] += p[j][i];
        weighted[i / 2] = fmaf(p[j][i], x[j][i] - mean[i / 2], weighted[i / 2]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += warp_sum<4>(sum[half]);
      const float offset = warp_sum<4>(weighted[half]);
      step[half] = total[half] > 0 ? offset / total[half] : 0.f;
      mean[half] += step[half];
    }
  }
};

// c -= step * d, by rows.
template <int kTiles>
__device__ inline void subtract(float (&c)[kTiles][4], const float (&step)[2],
                                const float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[j][i] = fmaf(-step[i / 2], d[j][i], c[j][i]);
  }
}

// Reads logsumexp of the lane's two rows of a tile, in units of log 2; 0 where there is no query.
__device__ inline void load_shift(float (&shift)[2], const float* logsumexp,
                                  const AttentionBatch& batch, const Sequence& sequence, int head,
                                  int first_query) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + tile_row() + 8 * half;
    const int64_t place = (sequence.first_token + query) * batch.num_heads + head;
    shift[half] = query < sequence.length ? logsumexp[place] * kLog2E : 0.f;
  }
}

// The heads [first, first + count) of sequence blockIdx.x that a block of a short launch works on.
struct HeadGroup {
  int first, count;
};

__device__ inline HeadGroup head_group(const AttentionBatch& batch, int heads_per_block) {
  const int first = blockIdx.y * heads_per_block;
  return {first, min(heads_per_block, batch.num_heads - first)};
}

}  // namespace sbrrt::cuda
