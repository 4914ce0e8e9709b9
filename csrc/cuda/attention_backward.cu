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

  static constexpr size_t kRowBytes = 4 * kRowStride<T, kDim> * sizeof(T) +
                                      sizeof(QueryStatistics) + kKeptWords * sizeof(uint32_t);
  __device__ ShortHead(int place, int padded) {
    const int size = padded * kRowStride<T, kDim>;
    query = reinterpret_cast<T*>(shared_memory<char>() + place * padded * kRowBytes);
    grad = query + size;
    key = grad + size;
    value = key + size;
    statistics = reinterpret_cast<float*>(value + size);
    kept = reinterpret_cast<uint32_t*>(statistics + 4 * padded);
  }
};

template <int kKeys, typename T, int kDim>
__device__ void short_queries(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                              int first, const ShortHead<T, kDim>& at) {
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  const auto kept = draw_kept<kKeys / 8>(dropout, first, 0, sequence.length);
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

template <int kKeys, typename T, int kDim>
__device__ void short_keys(const AttentionBackwardParams& p, const Sequence& sequence, int head,
                           int first, const ShortHead<T, kDim>& at) {
  KeyRows<kDim> rows;
  const T *key = at.key + first * kRowStride<T, kDim>, *value = key + (at.value - at.key);
  constexpr int kQueries = kKeys < kMaxLongKeys ? kKeys : kMaxLongKeys;
  for (int query = 0; query < sequence.length; query += kQueries) {
    const int place = query * kRowStride<T, kDim>;
    const QueryChunk<T> chunk{at.query + place, at.grad + place, at.statistics + 4 * query,
                              at.kept + query * kKeptWords};
    key_step<kQueries / 8>(rows, key, value, chunk, first, min(kQueries, sequence.length - query),
                           p.batch.dropout.threshold > 0);
  }
  key_finish<T>(p, sequence, head, first, rows);
}

// Sequences of at most kKeys tokens: both halves in one block, a warp takes tile after tile of its
// heads.
template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kShortThreads,
                                  AttentionTuning<T, kDim, kKeys>::kBackwardBlocks)
    attention_backward_short(const AttentionBackwardParams p, int heads_per_block) {
  await_previous_kernel();
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
    short_queries<kKeys>(p, sequence, heads.first + i / num_tiles, i % num_tiles * kTile,
                         ShortHead<T, kDim>(i / num_tiles, padded));
  }
  __syncthreads();
  for (int i = warp_index(); i < num_items; i += num_warps) {
    short_keys<kKeys>(p, sequence, heads.first + i / num_tiles, i % num_tiles * kTile,
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

// First half: kKeys queries per block, 16 per warp, and kKeys keys in shared memory at a time while
// the next ones are on their way. It holds [query | grad][kKeys], then [buffer][key | value][kKeys].
template <typename T, int kDim, int kKeys>
constexpr size_t kQueriesBytes = 6 * sizeof(T) * kKeys * kRowStride<T, kDim>;

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kLongThreads)
    attention_backward_queries(const AttentionBackwardParams p) {
  await_previous_kernel();
  static_assert(kQueriesBytes<T, kDim, kKeys> <= kMaxSharedBytes);
  constexpr int kSize = kKeys * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kKeys;
  if (block_first >= sequence.length) return;
  T *queries = shared_memory<T>(), *chunks = queries + 2 * kSize;
  copy_rows<T, kDim>(queries, p.query, sequence, head, block_first, kKeys);
  copy_rows<T, kDim>(queries + kSize, p.grad, sequence, head, block_first, kKeys);
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
    copy_rows<T, kDim>(to, p.key, sequence, head, chunk * kKeys, kKeys);
    copy_rows<T, kDim>(to + kSize, p.value, sequence, head, chunk * kKeys, kKeys);
  };
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const T* from = chunks + 2 * buffer * kSize;
    const int first_key = chunk * kKeys;
    const int num_keys = min(kKeys, sequence.length - first_key);
    const auto kept = draw_kept<kKeys / 8>(dropout, first, first_key, num_keys);
    query_step<false>(rows, query, query + kSize, from, from + kSize, shift, kept, chunk == 0,
                      num_keys);
    if (dropout.active()) {
      store_kept(workspace.kept + place * kLongKeptWords + first_key / 32, kLongKeptWords, kept,
                 num_queries);
    }
  };
  for_each_chunk(ceil_div(sequence.length, kKeys), copy, step);
  query_finish<T>(p, sequence, head, first, rows);
  store_statistics(workspace.statistics + 4 * place, 4, rows.means, shift, num_queries,
                   num_queries);
}

// Begins to copy the statistics and the bits of kKeptKeys keys from `first_key` on, of queries
// [first, first + kQueries); zeros where there is no query.
template <int kQueries>
__device__ void copy_statistics(float* statistics, uint32_t* kept, const AttentionBackwardParams& p,
                                const Sequence& sequence, int head, int first, int first_key) {
  const Workspace workspace(p);
  for (int i = threadIdx.x; i < kQueries; i += blockDim.x) {
    const bool valid = first + i < sequence.length;
    const int64_t token = sequence.first_token + (valid ? first + i : 0);
    const int64_t place = Workspace::place(p.batch, token, head);
    cp_async_16(statistics + 4 * i, workspace.statistics + 4 * place, valid);
    cp_async_16(kept + kKeptWords * i, workspace.kept + place * kLongKeptWords + first_key / 32,
                valid && p.batch.dropout.threshold > 0);
  }
}

// Second half: kKeys keys per block, 16 per warp, and as many queries in shared memory at a time. It
// holds [key | value][kKeys], then [buffer][query | grad][kKeys] and [buffer][statistics | bits].
template <typename T, int kDim, int kKeys>
constexpr size_t kKeysBytes =
    kQueriesBytes<T, kDim, kKeys> +
    2 * kKeys * (sizeof(QueryStatistics) + kKeptWords * sizeof(uint32_t));

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kLongThreads)
    attention_backward_keys(const AttentionBackwardParams p) {
  await_previous_kernel();
  static_assert(kKeysBytes<T, kDim, kKeys> <= kMaxSharedBytes);
  static_assert(kKeptKeys % kKeys == 0, "a block's keys have their bits in the same words");
  constexpr int kSize = kKeys * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kKeys;
  if (block_first >= sequence.length) return;
  T *keys = shared_memory<T>(), *chunks = keys + 2 * kSize;
  float* statistics = reinterpret_cast<float*>(chunks + 4 * kSize);
  uint32_t* kept = reinterpret_cast<uint32_t*>(statistics + 2 * 4 * kKeys);
  copy_rows<T, kDim>(keys, p.key, sequence, head, block_first, kKeys);
  copy_rows<T, kDim>(keys + kSize, p.value, sequence, head, block_first, kKeys);
  const int kept_first = block_first / kKeptKeys * kKeptKeys;
  const T* key = keys + warp_index() * kTile * kRowStride<T, kDim>;
  KeyRows<kDim> rows;
  const auto copy = [&](int chunk, int buffer) {
    T* to = chunks + 2 * buffer * kSize;
    const int first = chunk * kKeys;
    copy_rows<T, kDim>(to, p.query, sequence, head, first, kKeys);
    copy_rows<T, kDim>(to + kSize, p.grad, sequence, head, first, kKeys);
    copy_statistics<kKeys>(statistics + 4 * buffer * kKeys, kept + kKeptWords * buffer * kKeys, p,
                           sequence, head, first, kept_first);
  };
  const int first = block_first + warp_index() * kTile;
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const T* from = chunks + 2 * buffer * kSize;
    const QueryChunk<T> queries{from, from + kSize, statistics + 4 * buffer * kKeys,
                                kept + kKeptWords * buffer * kKeys};
    key_step<kKeys / 8>(rows, key, key + kSize, queries, first - kept_first,
                        min(kKeys, sequence.length - chunk * kKeys), p.batch.dropout.threshold > 0);
  };
  for_each_chunk(ceil_div(sequence.length, kKeys), copy, step);
  key_finish<T>(p, sequence, head, first, rows);
}

template <typename T, int kDim>
constexpr bool kFitsLongestChunk = kKeysBytes<T, kDim, kMaxLongKeys> <= kMaxSharedBytes;

template <typename T, int kDim>
AttentionPlan backward_plan(const AttentionBatch& batch) {
  return plan_of(batch, {ShortHead<T, kDim>::kRowBytes, kFitsLongestChunk<T, kDim>});
}

template <typename T, int kDim, int kKeys>
cudaError_t backward_long(const AttentionBackwardParams& p, dim3 grid, dim3 block,
                          cudaStream_t stream) {
  const cudaError_t error = launch<attention_backward_queries<T, kDim, kKeys>>(
      grid, block, kQueriesBytes<T, kDim, kKeys>, stream, p);
  if (error != cudaSuccess) return error;
  return launch<attention_backward_keys<T, kDim, kKeys>>(grid, block, kKeysBytes<T, kDim, kKeys>,
                                                         stream, p);
}

template <typename T, int kDim>
cudaError_t backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  const AttentionPlan plan = backward_plan<T, kDim>(p.batch);
  const dim3 grid = grid_of(p.batch, plan), block = block_of(plan);
  if (plan.is_short) {
    return with_short_keys<ShortHead<T, kDim>::kRowBytes>(plan, [&](auto keys) {
      return launch<attention_backward_short<T, kDim, keys>>(grid, block, plan.shared_bytes, stream,
                                                             p, plan.heads_per_block);
    });
  }
  return with_long_keys<kFitsLongestChunk<T, kDim>>(plan, [&](auto keys) {
    return backward_long<T, kDim, keys>(p, grid, block, stream);
  });
}

}  // namespace

size_t attention_backward_workspace(const AttentionBatch& batch) {
  bool is_short = false;
  with_batch_type(batch, [&](auto type, auto head_dim) {
    is_short = backward_plan<typename decltype(type)::type, head_dim>(batch).is_short;
    return cudaSuccess;
  });
  if (is_short) return 0;
  const size_t kept = batch.dropout.threshold > 0 ? kLongKeptWords * sizeof(uint32_t) : 0;
  return batch.num_tokens * batch.num_heads * (sizeof(QueryStatistics) + kept);
}

cudaError_t attention_backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  return with_batch_type(p.batch, [&](auto type, auto head_dim) {
    return backward<typename decltype(type)::type, head_dim>(p, stream);
  });
}

}  // namespace sbrrt::cuda
