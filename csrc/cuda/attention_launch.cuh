// How attention's kernels are laid out on the GPU, and the choice of instantiation.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/attention_tile.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {

// Short: a block has several heads of one sequence, so that there are tiles of 16 rows for its warps
// even where sequences are about half as long as the longest. Above 64 tokens one head has enough.
struct ShortLaunch {
  int heads_per_block, num_warps;
};

constexpr int kShortMaxWarps = 8;

inline bool is_short(const AttentionBatch& batch) { return batch.max_length <= kShortLength; }

inline int longest_padded(const AttentionBatch& batch) {
  return round_up_to_tile(static_cast<int>(batch.max_length));
}

inline ShortLaunch short_launch(const AttentionBatch& batch) {
  const int num_tiles = std::max(longest_padded(batch) / kTile, 1);
  if (num_tiles > 4) return {1, kShortMaxWarps};
  return {std::min(batch.num_heads, static_cast<int>(ceil_div(4, num_tiles))), 4};
}

inline dim3 short_grid(const AttentionBatch& batch, const ShortLaunch& launch) {
  return dim3(static_cast<unsigned>(batch.num_sequences),
              static_cast<unsigned>(ceil_div(batch.num_heads, launch.heads_per_block)));
}

// Long: a block has 64 rows of one (sequence, head).
inline dim3 long_grid(const AttentionBatch& batch) {
  return dim3(static_cast<unsigned>(batch.num_sequences), static_cast<unsigned>(batch.num_heads),
              static_cast<unsigned>(ceil_div(batch.max_length, kLongRows)));
}

template <typename T>
struct Element {
  using type = T;
};

template <typename T, typename Body>
cudaError_t with_head_dim(const AttentionBatch& batch, Body body) {
  if (batch.head_dim == 32) return body(Element<T>{}, std::integral_constant<int, 32>{});
  if (batch.head_dim == 64) return body(Element<T>{}, std::integral_constant<int, 64>{});
  return cudaErrorInvalidValue;
}

// Calls body with the batch's element type and head dimension.
template <typename Body>
cudaError_t dispatch(const AttentionBatch& batch, Body body) {
  if (batch.max_length < 0 || batch.max_length > kMaxAttentionLength) return cudaErrorInvalidValue;
  switch (batch.element) {
    case ElementType::kFloat: return with_head_dim<float>(batch, body);
    case ElementType::kHalf: return with_head_dim<__half>(batch, body);
    case ElementType::kBFloat16: return with_head_dim<__nv_bfloat16>(batch, body);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sbrrt::cuda
