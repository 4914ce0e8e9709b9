// JVP of packed attention: the output's tangent for tangents of queries, keys and values.
#include "cuda/attention_launch.cuh"

namespace sbrrt::cuda {
namespace {

// One row's worth of operands in shared memory: of queries, or of keys and values.
template <typename T>
struct QueryTiles {
  const T *query, *tangent;
};

template <typename T>
struct KeyTiles {
  const T *key, *key_tangent, *value, *value_tangent;
};

// A warp's 16 queries while chunks of keys are worked in. The tangent is relative to the mean so
// far; `out`, which it takes to move that mean, is kept where another chunk may come.
template <int kDim>
struct TangentRows {
  RowMeans means;
  float tangent[kDim / 8][4] = {}, out[kDim / 8][4] = {};
};

// p -> M P, x -> M P (x - mean) / sqrt(head_dim), but for the factors that come last.
template <int kDim, int kTiles>
__device__ void weigh_tangents(float (&p)[kTiles][4], float (&x)[kTiles][4],
                               const float (&mean)[2], const Kept<kTiles>& kept, int num_keys) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_keys) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[j][i] = kept(j, i) ? p[j][i] : 0.f;
      x[j][i] = p[j][i] * ((x[j][i] - mean[i / 2]) * kScoreScale<kDim>);
    }
  }
}

// Works in a chunk of keys; kOnly where there is no other one.
template <bool kOnly, typename T, int kDim, int kTiles>
__device__ void tangent_step(TangentRows<kDim>& rows, const QueryTiles<T>& queries,
                             const KeyTiles<T>& keys, const float (&shift)[2],
                             const Kept<kTiles>& kept, bool is_first, int num_keys) {
  float p[kTiles][4] = {}, x[kTiles][4] = {}, step[2];
  multiply_rows<kDim>(p, queries.query, keys.key, num_keys);
  multiply_rows<kDim>(x, queries.tangent, keys.key, num_keys);
  multiply_rows<kDim>(x, queries.query, keys.key_tangent, num_keys);
  exponentiate<kDim>(p, shift, num_keys);
  if (is_first) rows.means.start(x);
  rows.means.add(p, x, num_keys, step);
  if constexpr (!kOnly) {
    step[0] *= kScoreScale<kDim>;
    step[1] *= kScoreScale<kDim>;
    subtract(rows.tangent, step, rows.out);
  }
  weigh_tangents<kDim>(p, x, rows.means.mean, kept, num_keys);
  multiply_tiles<kDim>(rows.tangent, x, keys.value, num_keys);
  multiply_tiles<kDim>(rows.tangent, p, keys.value_tangent, num_keys);
  if constexpr (!kOnly) multiply_tiles<kDim>(rows.out, p, keys.value, num_keys);
}

template <typename T, int kDim>
__device__ void tangent_finish(const AttentionJvpParams& p, const Sequence& sequence, int head,
                               int first_query, const TangentRows<kDim>& rows) {
  const float factor[2] = {p.batch.dropout.scale / rows.means.total[0],
                           p.batch.dropout.scale / rows.means.total[1]};
  store_rows<T, kDim>(p.out_tangent, sequence, head, first_query, rows.tangent, factor);
}

// Rows [first, first + count) of everything that belongs to keys, each `size` further on.
template <typename T, int kDim>
__device__ void copy_keys(T* to, int size, const AttentionJvpParams& p,
                          const Sequence& sequence, int head, int first, int count) {
  copy_rows<T, kDim>(to, p.key, sequence, head, first, count);
  copy_rows<T, kDim>(to + size, p.key_tangent, sequence, head, first, count);
  copy_rows<T, kDim>(to + 2 * size, p.value, sequence, head, first, count);
  copy_rows<T, kDim>(to + 3 * size, p.value_tangent, sequence, head, first, count);
}

template <typename T>
__device__ KeyTiles<T> keys_at(const T* from, int size) {
  return {from, from + size, from + 2 * size, from + 3 * size};
}

// Sequences of at most kKeys tokens. Shared memory holds, head after head, [query | its tangent | key |
// its tangent | value | its tangent][padded length].
template <typename T, int kDim>
constexpr size_t kTangentRowBytes = 6 * sizeof(T) * kRowStride<T, kDim>;

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kShortThreads,
                                  AttentionTuning<T, kDim, kKeys>::kJvpBlocks)
    attention_jvp_short(const AttentionJvpParams p, int heads_per_block) {
  await_previous_kernel();
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const HeadGroup heads = head_group(p.batch, heads_per_block);
  const int padded = round_up_to_tile(sequence.length), size = padded * kRowStride<T, kDim>;
  for (int h = 0; h < heads.count; ++h) {
    T* to = shared_memory<T>() + 6 * h * size;
    copy_rows<T, kDim>(to, p.query, sequence, heads.first + h, 0, padded);
    copy_rows<T, kDim>(to + size, p.query_tangent, sequence, heads.first + h, 0, padded);
    copy_keys<T, kDim>(to + 2 * size, size, p, sequence, heads.first + h, 0, padded);
  }
  finish_copies();
  const int num_tiles = padded / kTile;
  for (int i = warp_index(); i < heads.count * num_tiles; i += blockDim.x / kWarpSize) {
    const int head = heads.first + i / num_tiles, first = i % num_tiles * kTile;
    const T* from = shared_memory<T>() + 6 * (i / num_tiles) * size;
    const T* query = from + first * kRowStride<T, kDim>;
    const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
    const auto kept = draw_kept<kKeys / 8>(dropout, first, 0, sequence.length);
    float shift[2];
    load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
    TangentRows<kDim> rows;
    tangent_step<true>(rows, {query, query + size}, keys_at(from + 2 * size, size), shift, kept,
                       true, sequence.length);
    tangent_finish<T>(p, sequence, head, first, rows);
  }
}

// Longer ones: kKeys queries per block, 16 per warp, and kKeys keys in shared memory at a time while
// the next ones are on their way. It holds [query | its tangent][kKeys], then [buffer][key | its
// tangent | value | its tangent][kKeys].
template <typename T, int kDim, int kKeys>
constexpr size_t kTangentLongBytes = 10 * sizeof(T) * kKeys * kRowStride<T, kDim>;

template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(AttentionTuning<T, kDim, kKeys>::kLongThreads)
    attention_jvp_long(const AttentionJvpParams p) {
  await_previous_kernel();
  static_assert(kTangentLongBytes<T, kDim, kKeys> <= kMaxSharedBytes);
  constexpr int kSize = kKeys * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kKeys;
  if (block_first >= sequence.length) return;
  T *queries = shared_memory<T>(), *chunks = queries + 2 * kSize;
  copy_rows<T, kDim>(queries, p.query, sequence, head, block_first, kKeys);
  copy_rows<T, kDim>(queries + kSize, p.query_tangent, sequence, head, block_first, kKeys);
  const int first = block_first + warp_index() * kTile;
  const T* query = queries + warp_index() * kTile * kRowStride<T, kDim>;
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  float shift[2];
  load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
  TangentRows<kDim> rows;
  const auto copy = [&](int chunk, int buffer) {
    copy_keys<T, kDim>(chunks + 4 * buffer * kSize, kSize, p, sequence, head, chunk * kKeys, kKeys);
  };
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const int first_key = chunk * kKeys;
    const int num_keys = min(kKeys, sequence.length - first_key);
    const auto kept = draw_kept<kKeys / 8>(dropout, first, first_key, num_keys);
    tangent_step<false>(rows, {query, query + kSize},
                        keys_at(chunks + 4 * buffer * kSize, kSize), shift, kept, chunk == 0,
                        num_keys);
  };
  for_each_chunk(ceil_div(sequence.length, kKeys), copy, step);
  tangent_finish<T>(p, sequence, head, first, rows);
}

template <typename T, int kDim>
cudaError_t jvp(const AttentionJvpParams& p, cudaStream_t stream) {
  constexpr bool kFits = kTangentLongBytes<T, kDim, kMaxLongKeys> <= kMaxSharedBytes;
  const AttentionPlan plan = plan_of(p.batch, {kTangentRowBytes<T, kDim>, kFits});
  const dim3 grid = grid_of(p.batch, plan), block = block_of(plan);
  if (plan.is_short) {
    return with_short_keys<kTangentRowBytes<T, kDim>>(plan, [&](auto keys) {
      return launch<attention_jvp_short<T, kDim, keys>>(grid, block, plan.shared_bytes, stream, p,
                                                        plan.heads_per_block);
    });
  }
  return with_long_keys<kFits>(plan, [&](auto keys) {
    return launch<attention_jvp_long<T, kDim, keys>>(
        grid, block, kTangentLongBytes<T, kDim, keys>, stream, p);
  });
}

}  // namespace

cudaError_t attention_jvp(const AttentionJvpParams& p, cudaStream_t stream) {
  return with_batch_type(p.batch, [&](auto type, auto head_dim) {
    return jvp<typename decltype(type)::type, head_dim>(p, stream);
  });
}

}  // namespace sbrrt::cuda
