// How attention's kernels are laid out on the GPU, and the choice of instantiation.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/attention_tile.cuh"
#include "cuda/common/dispatch.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {

// The kernel for a batch, and its blocks.
struct AttentionPlan {
  bool is_short;
  int keys;  // of a chunk
  int heads_per_block, num_warps;
  size_t shared_bytes;  // of a short block
};

// What a pass needs of shared memory: a short block for each row of a head, and whether a long block
// with chunks of kMaxLongKeys fits.
struct AttentionNeeds {
  size_t row_bytes;
  bool fits_longest_chunk;
};

inline int longest_padded(const AttentionBatch& batch) {
  return round_up_to_tile(static_cast<int>(batch.max_length));
}

// Whether the sequences have at most so many tokens on average. The host knows this number as it
// knows the longest.
inline bool has_mean_up_to(const AttentionBatch& batch, int64_t length) {
  return batch.num_tokens <= length * batch.num_sequences;
}

// A short block has several heads of one sequence, so that there are tiles of 16 rows for its warps
// even where sequences are about half as long as the longest. Above 64 tokens one head has enough.
inline AttentionPlan short_plan(const AttentionBatch& batch, int keys, size_t row_bytes) {
  const int num_tiles = std::max(longest_padded(batch) / kTile, 1);
  const size_t head_bytes = num_tiles * kTile * row_bytes;
  constexpr int kTiles = AttentionChoice::kTilesPerBlock;
  const bool has_few_tiles =
      num_tiles <= kTiles || has_mean_up_to(batch, AttentionChoice::kFewWarpsMean);
  const int num_warps = has_few_tiles ? kTiles : 2 * kTiles;
  const int wanted = static_cast<int>(ceil_div(kTiles, num_tiles));
  const int fitting = std::max(static_cast<int>(kMaxSharedBytes / head_bytes), 1);
  const int num_heads = std::min({batch.num_heads, wanted, fitting});
  return {true, keys, num_heads, num_warps, num_heads * head_bytes};
}

// One long sequence among many short ones does not choose the kernel.
inline AttentionPlan plan_of(const AttentionBatch& batch, const AttentionNeeds& needs) {
  int keys = 32;
  while (keys < kMaxShortKeys && keys < batch.max_length) keys *= 2;
  constexpr int kShare = AttentionChoice::kKeysPerMeanToken;
  if (batch.max_length <= keys && (keys == 32 || !has_mean_up_to(batch, keys / kShare))) {
    const AttentionPlan plan = short_plan(batch, keys, needs.row_bytes);
    if (plan.shared_bytes <= kMaxSharedBytes) return plan;
  }
  const bool is_large =
      needs.fits_longest_chunk && !has_mean_up_to(batch, AttentionChoice::kSmallChunkMean);
  keys = is_large ? kMaxLongKeys : 32;
  return {false, keys, 1, keys / kTile, 0};
}

inline dim3 block_of(const AttentionPlan& plan) { return dim3(plan.num_warps * kWarpSize); }

// A short block has some heads of a sequence, a long one as many rows of a head as its chunks have.
inline dim3 grid_of(const AttentionBatch& batch, const AttentionPlan& plan) {
  const auto num_sequences = static_cast<unsigned>(batch.num_sequences);
  const auto num_groups = static_cast<unsigned>(ceil_div(batch.num_heads, plan.heads_per_block));
  if (plan.is_short) return dim3(num_sequences, num_groups);
  return dim3(num_sequences, num_groups,
              static_cast<unsigned>(ceil_div(batch.max_length, plan.keys)));
}

template <int kKeys>
using Keys = std::integral_constant<int, kKeys>;

// The most keys of a short kernel: there must be a length for which its blocks fit.
template <size_t kRowBytes>
constexpr int kMostShortKeys =
    (kMaxShortKeys / 2 + kTile) * kRowBytes <= kMaxSharedBytes ? kMaxShortKeys : kMaxShortKeys / 2;

// Calls body with the keys of a plan's chunk.
template <size_t kRowBytes, typename Body>
cudaError_t with_short_keys(const AttentionPlan& plan, Body body) {
  if constexpr (kMostShortKeys<kRowBytes> == kMaxShortKeys) {
    if (plan.keys == kMaxShortKeys) return body(Keys<kMaxShortKeys>{});
  }
  return plan.keys == 32 ? body(Keys<32>{}) : body(Keys<64>{});
}

template <bool kFitsLongestChunk, typename Body>
cudaError_t with_long_keys(const AttentionPlan& plan, Body body) {
  if constexpr (kFitsLongestChunk) {
    if (plan.keys == kMaxLongKeys) return body(Keys<kMaxLongKeys>{});
  }
  return body(Keys<32>{});
}

// Calls body with the TypeTag of the batch's dtype and its head dimension.
template <typename Body>
cudaError_t with_batch_type(const AttentionBatch& batch, Body body) {
  if (batch.max_length < 0 || batch.max_length > kMaxAttentionLength) return cudaErrorInvalidValue;
  return with_dtype(batch.dtype, [&](auto type) {
    if (batch.head_dim == 32) return body(type, std::integral_constant<int, 32>{});
    if (batch.head_dim == 64) return body(type, std::integral_constant<int, 64>{});
    return cudaErrorInvalidValue;
  });
}

}  // namespace sbrrt::cuda
