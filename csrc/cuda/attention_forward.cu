// Forward pass of packed attention: O = dropout(softmax(Q K^T / sqrt(head_dim))) V, and the rows'
// logsumexp.
#include "cuda/attention_launch.cuh"

namespace sbrrt::cuda {
namespace {

// A warp's 16 queries while chunks of keys are worked in: the greatest score so far, and the sums of
// exponentials and of the values they weigh, relative to it.
template <int kDim>
struct ForwardRows {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, out[kDim / 8][4] = {};
};

template <int kTiles>
__device__ void find_top(float (&top)[2], const float (&scores)[kTiles][4], int num_keys) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = 8 * j + tile_column() + i % 2 < num_keys;
      if (valid) top[i / 2] = fmaxf(top[i / 2], scores[j][i]);
    }
  }
  top[0] = warp_max<4>(top[0]);
  top[1] = warp_max<4>(top[1]);
}

// What is relative to the old top becomes relative to the new one.
template <int kDim>
__device__ void move_top(ForwardRows<kDim>& rows, const float (&top)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float factor = exp2f((rows.top[half] - top[half]) * (kScoreScale<kDim> * kLog2E));
    rows.sum[half] *= factor;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      rows.out[n][2 * half] *= factor;
      rows.out[n][2 * half + 1] *= factor;
    }
  }
}

// Adds exponentials to the rows' sums, then zeroes the dropped ones.
template <int kDim, int kTiles>
__device__ void sum_and_drop(ForwardRows<kDim>& rows, float (&p)[kTiles][4],
                             const Kept<kTiles>& kept, int num_keys) {
  float sum[2] = {};
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i / 2] += p[j][i];
      p[j][i] = kept(j, i) ? p[j][i] : 0.f;
    }
  }
  rows.sum[0] += warp_sum<4>(sum[0]);
  rows.sum[1] += warp_sum<4>(sum[1]);
}

// Works in a chunk of keys; kOnly where there is no other one.
template <bool kOnly, typename T, int kDim, int kTiles>
__device__ void forward_step(ForwardRows<kDim>& rows, const T* query, const T* key, const T* value,
                             const Kept<kTiles>& kept, int num_keys) {
  float p[kTiles][4] = {}, top[2] = {rows.top[0], rows.top[1]};
  multiply_rows<kDim>(p, query, key, num_keys);
  find_top(top, p, num_keys);
  if constexpr (!kOnly) move_top(rows, top);
  rows.top[0] = top[0];
  rows.top[1] = top[1];
  constexpr float kScale = kScoreScale<kDim> * kLog2E;
  const float shift[2] = {top[0] * kScale, top[1] * kScale};
  exponentiate<kDim>(p, shift, num_keys);
  sum_and_drop(rows, p, kept, num_keys);
  multiply_tiles<kDim>(rows.out, p, value, num_keys);
}

template <typename T, int kDim>
__device__ void forward_finish(const AttentionForwardParams& p, const Sequence& sequence, int head,
                               int first_query, const ForwardRows<kDim>& rows) {
  const float scale = p.batch.dropout.scale, factor[2] = {scale / rows.sum[0], scale / rows.sum[1]};
  store_rows<T, kDim>(p.out, sequence, head, first_query, rows.out, factor);
  if (tile_column() != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = first_query + tile_row() + 8 * half;
    if (query >= sequence.length) continue;
    p.logsumexp[(sequence.first_token + query) * p.batch.num_heads + head] =
        fmaf(rows.top[half], kScoreScale<kDim>, logf(rows.sum[half]));
  }
}

// Sequences of at most kKeys tokens: a warp takes tile after tile of the block's heads. Shared memory
// holds [query | key | value][head][padded length].
template <typename T, int kDim>
constexpr size_t kForwardRowBytes = 3 * sizeof(T) * kRowStride<T, kDim>;

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kShortThreads,
                                  AttentionTuning<T, kDim, kKeys>::kForwardBlocks)
    attention_forward_short(const AttentionForwardParams p, int heads_per_block) {
  await_previous_kernel();
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const HeadGroup heads = head_group(p.batch, heads_per_block);
  const int padded = round_up_to_tile(sequence.length), head_size = padded * kRowStride<T, kDim>;
  T* query = shared_memory<T>();
  T *key = query + heads.count * head_size, *value = key + heads.count * head_size;
  for (int h = 0; h < heads.count; ++h) {
    const int head = heads.first + h, place = h * head_size;
    copy_rows<T, kDim>(query + place, p.query, sequence, head, 0, padded);
    copy_rows<T, kDim>(key + place, p.key, sequence, head, 0, padded);
    copy_rows<T, kDim>(value + place, p.value, sequence, head, 0, padded);
  }
  finish_copies();
  const int num_tiles = padded / kTile;
  for (int i = warp_index(); i < heads.count * num_tiles; i += blockDim.x / kWarpSize) {
    const int place = i / num_tiles * head_size, head = heads.first + i / num_tiles;
    const int first = i % num_tiles * kTile;
    const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
    const auto kept = draw_kept<kKeys / 8>(dropout, first, 0, sequence.length);
    ForwardRows<kDim> rows;
    forward_step<true>(rows, query + place + first * kRowStride<T, kDim>, key + place,
                       value + place, kept, sequence.length);
    forward_finish<T>(p, sequence, head, first, rows);
  }
}

// Longer ones: kKeys queries per block, 16 per warp, and kKeys keys in shared memory at a time while
// the next ones are on their way. It holds [query][kKeys], then [buffer][key | value][kKeys].
template <typename T, int kDim, int kKeys>
constexpr size_t kForwardLongBytes = 5 * sizeof(T) * kKeys * kRowStride<T, kDim>;

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kLongThreads)
    attention_forward_long(const AttentionForwardParams p) {
  await_previous_kernel();
  static_assert(kForwardLongBytes<T, kDim, kKeys> <= kMaxSharedBytes);
  constexpr int kSize = kKeys * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kKeys;
  if (block_first >= sequence.length) return;
  T *query = shared_memory<T>(), *chunks = query + kSize;
  copy_rows<T, kDim>(query, p.query, sequence, head, block_first, kKeys);
  const int first = block_first + warp_index() * kTile;
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  ForwardRows<kDim> rows;
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
    forward_step<false>(rows, query + warp_index() * kTile * kRowStride<T, kDim>, from,
                        from + kSize, kept, num_keys);
  };
  for_each_chunk(ceil_div(sequence.length, kKeys), copy, step);
  forward_finish<T>(p, sequence, head, first, rows);
}

template <typename T, int kDim>
cudaError_t forward(const AttentionForwardParams& p, cudaStream_t stream) {
  constexpr bool kFits = kForwardLongBytes<T, kDim, kMaxLongKeys> <= kMaxSharedBytes;
  const AttentionPlan plan = plan_of(p.batch, {kForwardRowBytes<T, kDim>, kFits});
  const dim3 grid = grid_of(p.batch, plan), block = block_of(plan);
  if (plan.is_short) {
    return with_short_keys<kForwardRowBytes<T, kDim>>(plan, [&](auto keys) {
      return launch<attention_forward_short<T, kDim, keys>>(grid, block, plan.shared_bytes, stream,
                                                            p, plan.heads_per_block);
    });
  }
  return with_long_keys<kFits>(plan, [&](auto keys) {
    return launch<attention_forward_long<T, kDim, keys>>(
        grid, block, kForwardLongBytes<T, kDim, keys>, stream, p);
  });
}

}  // namespace

cudaError_t attention_forward(const AttentionForwardParams& p, cudaStream_t stream) {
  return with_batch_type(p.batch, [&](auto type, auto head_dim) {
    return forward<typename decltype(type)::type, head_dim>(p, stream);
  });
}

}  // namespace sbrrt::cuda
