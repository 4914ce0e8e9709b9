// Backward pass of packed attention, without atomics: first query by query, the rows' statistics and
// the gradient of Q; then key by key, the gradients of K and V.
#include "cuda/attention_gradients.cuh"
#include "cuda/attention_launch.cuh"

namespace sbrrt::cuda {
namespace {

// A head in a short block's shared memory: [query | grad | key | value][padded length], then
// statistics and bits of its queries.
template <typename T, int kDim>
struct ShortHead {
  T *query, *grad, *key, *value;
  float* statistics;
  uint32_t* kept;

  static __host__ __device__ constexpr int bytes(int padded) {
    return padded * (4 * kRowStride<T, kDim> * sizeof(T) + sizeof(QueryStatistics) +
                     kKeptWords * sizeof(uint32_t));
  }
  __device__ ShortHead(int place, int padded) {
    const int size = padded * kRowStride<T, kDim>;
    query = reinterpret_cast<T*>(shared_memory<char>() + place * bytes(padded));
    grad = query + size;
    key = grad + size;
    value = key + size;
    statistics = reinterpret_cast<float*>(value + size);
    kept = reinterpret_cast<uint32_t*>(statistics + 4 * padded);
  }
};

template <typename T, int kDim>
__device__ void short_queries(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                              int first, const ShortHead<T, kDim>& at) {
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  const auto kept = draw_kept<kShortTiles>(dropout, first, 0, sequence.length);
  float shift[2];
  load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
  QueryRows<kDim> rows;
  const int place = first * kRowStride<T, kDim>;
  query_step<true>(rows, at.query + place, at.grad + place, at.key, at.value, shift, kept, true,
                   sequence.length);
  query_finish<T>(p, sequence, head, first, rows);
  store_kept(at.kept + first * kKeptWords, kKeptWords, kept, kTile);
  store_statistics(at.statistics + 4 * first, 4, rows.means, shift, sequence.length - first, kTile);
}

template <typename T, int kDim>
__device__ void short_keys(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                           int first, const ShortHead<T, kDim>& at) {
  KeyRows<kDim> rows;
  const T *key = at.key + first * kRowStride<T, kDim>, *value = key + (at.value - at.key);
  for (int query = 0; query < sequence.length; query += kLongChunk) {
    const int place = query * kRowStride<T, kDim>;
    const QueryChunk<T> chunk{at.query + place, at.grad + place, at.statistics + 4 * query,
                              at.kept + query * kKeptWords};
    key_step<kLongTiles>(rows, key, value, chunk, first, min(kLongChunk, sequence.length - query),
                         p.batch.threshold > 0);
  }
  key_finish<T>(p, sequence, head, first, rows);
}

// Sequences of at most 128 tokens: both halves in one block, a warp takes tile after tile of its
// heads.
template <typename T, int kDim>
__global__ void __launch_bounds__(kShortMaxWarps* kWarpSize)
    attention_backward_short(const AttentionBackwardParams p, int heads_per_block) {
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const HeadGroup heads = head_group(p.batch, heads_per_block);
  const int padded = round_up_to_tile(sequence.length), num_tiles = padded / kTile;
  for (int h = 0; h < heads.count; ++h) {
    const ShortHead<T, kDim> at(h, padded);
    copy_rows<T, kDim>(at.query, p.query, sequence, heads.first + h, 0, padded);
    copy_rows<T, kDim>(at.grad, p.grad, sequence, heads.first + h, 0, padded);
    copy_rows<T, kDim>(at.key, p.key, sequence, heads.first + h, 0, padded);
    copy_rows<T, kDim>(at.value, p.value, sequence, heads.first + h, 0, padded);
  }
  finish_copies();
  const int num_items = heads.count * num_tiles, num_warps = blockDim.x / kWarpSize;
  for (int i = warp_index(); i < num_items; i += num_warps) {
    short_queries(p, sequence, heads.first + i / num_tiles, i % num_tiles * kTile,
                  ShortHead<T, kDim>(i / num_tiles, padded));
  }
  __syncthreads();
  for (int i = warp_index(); i < num_items; i += num_warps) {
    short_keys(p, sequence, heads.first + i / num_tiles, i % num_tiles * kTile,
               ShortHead<T, kDim>(i / num_tiles, padded));
  }
}

// What the two halves of a longer sequence leave in global memory: [head][token] of statistics and
// of bits, a word for 32 keys.
constexpr int kLongKeptWords = kMaxAttentionLength / 32;

struct Workspace {
  float* statistics;
  uint32_t* kept;

  static __host__ __device__ int64_t place(const AttentionBatch& batch, int64_t token, int head) {
    return head * batch.num_tokens + token;
  }
  __host__ __device__ explicit Workspace(const AttentionBackwardParams& p) {
    statistics = static_cast<float*>(p.workspace);
    kept = reinterpret_cast<uint32_t*>(statistics + 4 * place(p.batch, 0, p.batch.num_heads));
  }
};

// First half: 64 queries per block, 16 per warp, and 64 keys in shared memory at a time while the
// next 64 are on their way. Shared memory holds [query | grad][64], then [buffer][key | value][64].
template <typename T, int kDim>
__global__ void __launch_bounds__(kLongWarps* kWarpSize)
    attention_backward_queries(const AttentionBackwardParams p) {
  constexpr int kSize = kLongChunk * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kLongRows;
  if (block_first >= sequence.length) return;
  T *queries = shared_memory<T>(), *chunks = queries + 2 * kSize;
  copy_rows<T, kDim>(queries, p.query, sequence, head, block_first, kLongRows);
  copy_rows<T, kDim>(queries + kSize, p.grad, sequence, head, block_first, kLongRows);
  const int first = block_first + warp_index() * kTile, num_queries = sequence.length - first;
  const T* query = queries + warp_index() * kTile * kRowStride<T, kDim>;
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  const Workspace workspace(p);
  const int64_t place = Workspace::place(p.batch, sequence.first_token + first, head);
  float shift[2];
  load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
  QueryRows<kDim> rows;
  const auto copy = [&](int chunk, int buffer) {
    T* to = chunks + 2 * buffer * kSize;
    copy_rows<T, kDim>(to, p.key, sequence, head, chunk * kLongChunk, kLongChunk);
    copy_rows<T, kDim>(to + kSize, p.value, sequence, head, chunk * kLongChunk, kLongChunk);
  };
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const T* from = chunks + 2 * buffer * kSize;
    const int first_key = chunk * kLongChunk;
    const int num_keys = min(kLongChunk, sequence.length - first_key);
    const auto kept = draw_kept<kLongTiles>(dropout, first, first_key, num_keys);
    query_step<false>(rows, query, query + kSize, from, from + kSize, shift, kept, chunk == 0,
                      num_keys);
    if (dropout.active()) {
      store_kept(workspace.kept + place * kLongKeptWords + first_key / 32, kLongKeptWords, kept,
                 num_queries);
    }
  };
  for_each_chunk(ceil_div(sequence.length, kLongChunk), copy, step);
  query_finish<T>(p, sequence, head, first, rows);
  store_statistics(workspace.statistics + 4 * place, 4, rows.means, shift, num_queries,
                   num_queries);
}

// Begins to copy the statistics and the bits of 128 keys from `first_key` on, of queries
// [first, first + 64); zeros where there is no query.
__device__ void copy_statistics(float* statistics, uint32_t* kept, const AttentionBackwardParams& p,
                                const Sequence& sequence, int head, int first, int first_key) {
  const Workspace workspace(p);
  for (int i = threadIdx.x; i < kLongChunk; i += blockDim.x) {
    const bool valid = first + i < sequence.length;
    const int64_t token = sequence.first_token + (valid ? first + i : 0);
    const int64_t place = Workspace::place(p.batch, token, head);
    cp_async_16(statistics + 4 * i, workspace.statistics + 4 * place, valid);
    cp_async_16(kept + kKeptWords * i, workspace.kept + place * kLongKeptWords + first_key / 32,
                valid && p.batch.threshold > 0);
  }
}

// Second half: 64 keys per block, 16 per warp, and 64 queries in shared memory at a time. Shared
// memory holds [key | value][64], then [buffer][query | grad][64] and [buffer][statistics | bits][64].
template <typename T, int kDim>
__global__ void __launch_bounds__(kLongWarps* kWarpSize)
    attention_backward_keys(const AttentionBackwardParams p) {
  constexpr int kSize = kLongChunk * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kLongRows;
  if (block_first >= sequence.length) return;
  T *keys = shared_memory<T>(), *chunks = keys + 2 * kSize;
  float* statistics = reinterpret_cast<float*>(chunks + 4 * kSize);
  uint32_t* kept = reinterpret_cast<uint32_t*>(statistics + 2 * 4 * kLongChunk);
  copy_rows<T, kDim>(keys, p.key, sequence, head, block_first, kLongRows);
  copy_rows<T, kDim>(keys + kSize, p.value, sequence, head, block_first, kLongRows);
  const int kept_first = block_first / kShortLength * kShortLength;
  const T* key = keys + warp_index() * kTile * kRowStride<T, kDim>;
  KeyRows<kDim> rows;
  const auto copy = [&](int chunk, int buffer) {
    T* to = chunks + 2 * buffer * kSize;
    const int first = chunk * kLongChunk;
    copy_rows<T, kDim>(to, p.query, sequence, head, first, kLongChunk);
    copy_rows<T, kDim>(to + kSize, p.grad, sequence, head, first, kLongChunk);
    copy_statistics(statistics + 4 * buffer * kLongChunk, kept + kKeptWords * buffer * kLongChunk,
                    p, sequence, head, first, kept_first);
  };
  const int first = block_first + warp_index() * kTile;
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const T* from = chunks + 2 * buffer * kSize;
    const QueryChunk<T> queries{from, from + kSize, statistics + 4 * buffer * kLongChunk,
                                kept + kKeptWords * buffer * kLongChunk};
    key_step<kLongTiles>(rows, key, key + kSize, queries, first - kept_first,
                         min(kLongChunk, sequence.length - chunk * kLongChunk),
                         p.batch.threshold > 0);
  };
  for_each_chunk(ceil_div(sequence.length, kLongChunk), copy, step);
  key_finish<T>(p, sequence, head, first, rows);
}

template <typename T, int kDim>
cudaError_t backward_short(const AttentionBackwardParams& p, cudaStream_t stream) {
  const ShortLaunch shape = short_launch(p.batch);
  const size_t bytes = shape.heads_per_block * ShortHead<T, kDim>::bytes(longest_padded(p.batch));
  return launch<attention_backward_short<T, kDim>>(short_grid(p.batch, shape),
                                                   dim3(shape.num_warps * kWarpSize), bytes,
                                                   stream, p, shape.heads_per_block);
}

template <typename T, int kDim>
cudaError_t backward_long(const AttentionBackwardParams& p, cudaStream_t stream) {
  const size_t rows = 6 * sizeof(T) * kLongChunk * kRowStride<T, kDim>;
  const size_t others =
      2 * kLongChunk * (sizeof(QueryStatistics) + kKeptWords * sizeof(uint32_t));
  const dim3 grid = long_grid(p.batch), block(kLongWarps * kWarpSize);
  const cudaError_t error =
      launch<attention_backward_queries<T, kDim>>(grid, block, rows, stream, p);
  if (error != cudaSuccess) return error;
  return launch<attention_backward_keys<T, kDim>>(grid, block, rows + others, stream, p);
}

}  // namespace

size_t attention_backward_workspace(const AttentionBatch& batch) {
  if (is_short(batch)) return 0;
  const size_t kept = batch.threshold > 0 ? kLongKeptWords * sizeof(uint32_t) : 0;
  return batch.num_tokens * batch.num_heads * (sizeof(QueryStatistics) + kept);
}

cudaError_t attention_backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  return dispatch(p.batch, [&](auto element, auto head_dim) {
    using T = typename decltype(element)::type;
    return is_short(p.batch) ? backward_short<T, head_dim>(p, stream)
                             : backward_long<T, head_dim>(p, stream);
  });
}

}  // namespace sbrrt::cuda
