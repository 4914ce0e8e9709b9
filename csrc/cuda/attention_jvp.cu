// Tangent of packed attention's output for tangents of queries, keys and values.
#include "cuda/attention_launch.cuh"

namespace sbrrt::cuda {
namespace {

// Keys in shared memory at a time above 128 tokens. They come in four matrices, and in fp32 64 of them
// are more than a block can have.
template <typename T>
constexpr int kTangentChunk = sizeof(T) == 2 ? kLongChunk : kLongChunk / 2;

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
__device__ void tangent_finish(const AttentionTangentParams& p, const Sequence& sequence, int head,
                               int first_query, const TangentRows<kDim>& rows) {
  const float factor[2] = {p.batch.kept_scale / rows.means.total[0],
                           p.batch.kept_scale / rows.means.total[1]};
  store_rows<T, kDim>(p.out_tangent, sequence, head, first_query, rows.tangent, factor);
}

// Rows [first, first + count) of everything that belongs to keys, each `size` further on.
template <typename T, int kDim>
__device__ void copy_keys(T* to, int size, const AttentionTangentParams& p,
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

// Sequences of at most 128 tokens that fit in shared memory, all keys at once. It holds, head after
// head, [query | its tangent | key | its tangent | value | its tangent][padded length].
template <typename T, int kDim>
__global__ void __launch_bounds__(kShortMaxWarps* kWarpSize)
    attention_jvp_short(const AttentionTangentParams p, int heads_per_block) {
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
    const auto kept = draw_kept<kShortTiles>(dropout, first, 0, sequence.length);
    float shift[2];
    load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
    TangentRows<kDim> rows;
    tangent_step<true>(rows, {query, query + size}, keys_at(from + 2 * size, size), shift, kept,
                       true, sequence.length);
    tangent_finish<T>(p, sequence, head, first, rows);
  }
}

// Longer ones: 64 queries per block, 16 per warp, and a chunk of keys in shared memory while the next
// one is on its way. Shared memory holds [query | its tangent][64], then [buffer][key | its tangent |
// value | its tangent][chunk].
template <typename T, int kDim>
__global__ void __launch_bounds__(kLongWarps* kWarpSize)
    attention_jvp_long(const AttentionTangentParams p) {
  constexpr int kChunk = kTangentChunk<T>, kKeySize = kChunk * kRowStride<T, kDim>;
  constexpr int kQuerySize = kLongRows * kRowStride<T, kDim>;
  const Sequence sequence = sequence_of(p.batch, blockIdx.x);
  const int head = blockIdx.y, block_first = blockIdx.z * kLongRows;
  if (block_first >= sequence.length) return;
  T *queries = shared_memory<T>(), *chunks = queries + 2 * kQuerySize;
  copy_rows<T, kDim>(queries, p.query, sequence, head, block_first, kLongRows);
  copy_rows<T, kDim>(queries + kQuerySize, p.query_tangent, sequence, head, block_first, kLongRows);
  const int first = block_first + warp_index() * kTile;
  const T* query = queries + warp_index() * kTile * kRowStride<T, kDim>;
  const Dropout dropout = dropout_of(p.batch, blockIdx.x, head);
  float shift[2];
  load_shift(shift, p.logsumexp, p.batch, sequence, head, first);
  TangentRows<kDim> rows;
  const auto copy = [&](int chunk, int buffer) {
    copy_keys<T, kDim>(chunks + 4 * buffer * kKeySize, kKeySize, p, sequence, head, chunk * kChunk,
                       kChunk);
  };
  const auto step = [&](int chunk, int buffer) {
    if (first >= sequence.length) return;
    const int first_key = chunk * kChunk;
    const int num_keys = min(kChunk, sequence.length - first_key);
    const auto kept = draw_kept<kChunk / 8>(dropout, first, first_key, num_keys);
    tangent_step<false>(rows, {query, query + kQuerySize},
                        keys_at(chunks + 4 * buffer * kKeySize, kKeySize), shift, kept, chunk == 0,
                        num_keys);
  };
  for_each_chunk(ceil_div(sequence.length, kChunk), copy, step);
  tangent_finish<T>(p, sequence, head, first, rows);
}

template <typename T, int kDim>
size_t short_bytes(const AttentionBatch& batch) {
  const int num_rows = short_launch(batch).heads_per_block * longest_padded(batch);
  return 6 * sizeof(T) * num_rows * kRowStride<T, kDim>;
}

template <typename T, int kDim>
cudaError_t jvp_short(const AttentionTangentParams& p, cudaStream_t stream) {
  const ShortLaunch shape = short_launch(p.batch);
  return launch<attention_jvp_short<T, kDim>>(
      short_grid(p.batch, shape), dim3(shape.num_warps * kWarpSize), short_bytes<T, kDim>(p.batch),
      stream, p, shape.heads_per_block);
}

template <typename T, int kDim>
cudaError_t jvp_long(const AttentionTangentParams& p, cudaStream_t stream) {
  const size_t bytes =
      (2 * kLongRows + 8 * kTangentChunk<T>) * sizeof(T) * kRowStride<T, kDim>;
  return launch<attention_jvp_long<T, kDim>>(long_grid(p.batch), dim3(kLongWarps * kWarpSize),
                                             bytes, stream, p);
}

}  // namespace

cudaError_t attention_jvp(const AttentionTangentParams& p, cudaStream_t stream) {
  return dispatch(p.batch, [&](auto element, auto head_dim) {
    using T = typename decltype(element)::type;
    const bool fits = is_short(p.batch) && short_bytes<T, head_dim>(p.batch) <= kMaxSharedBytes;
    return fits ? jvp_short<T, head_dim>(p, stream) : jvp_long<T, head_dim>(p, stream);
  });
}

}  // namespace sbrrt::cuda
