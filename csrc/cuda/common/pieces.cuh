// Many tensors in one launch: each is cut into pieces of kAdamwPiece elements, a block has one.
#pragma once

#include <type_traits>

#include "cuda/adamw.h"
#include "cuda/common/rows.cuh"

namespace sbrrt::cuda {

constexpr int kPieceWarps = 8;
constexpr int kPieceThreads = kPieceWarps * kWarpSize;

// The tensor that the block belongs to: the last one whose first block is not after it.
__device__ inline int tensor_of_block(const int32_t* first_block, int num_tensors) {
  int low = 0, high = num_tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_block[middle] <= static_cast<int>(blockIdx.x) ? low : high) = middle;
  }
  return low;
}

// f(TypeTag<T>{}) for the type of a dtype, the same for the whole block.
template <typename F>
__device__ inline auto with_element_type(ElementType dtype, F f) {
  switch (dtype) {
    case ElementType::kHalf: return f(TypeTag<__half>{});
    case ElementType::kBFloat16: return f(TypeTag<__nv_bfloat16>{});
    default: return f(TypeTag<float>{});
  }
}

// f(std::integral_constant<int, N>, i) for N elements from i on, N = 4 where four can be moved at
// once; the block's threads share begin ... end - 1, and begin is a multiple of 4.
template <typename F>
__device__ inline void for_each_element(int64_t begin, int64_t end, bool is_vector, F f) {
  const int64_t stop = is_vector ? begin + (end - begin) / 4 * 4 : begin;
#pragma unroll 2
  for (int64_t i = begin + threadIdx.x * 4; i < stop; i += kPieceThreads * 4) {
    f(std::integral_constant<int, 4>{}, i);
  }
  for (int64_t i = stop + threadIdx.x; i < end; i += kPieceThreads) {
    f(std::integral_constant<int, 1>{}, i);
  }
}

}  // namespace sbrrt::cuda
