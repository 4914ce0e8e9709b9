// AdamW, the teacher's average and the low-precision copies: all tensors in one launch, or one table of
// which a few rows have a gradient.
#include "cuda/adamw.h"

#include <type_traits>

#include "cuda/common/adamw.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/pieces.cuh"

namespace sbrrt::cuda {
namespace {

// Elements begin ... end - 1 of one tensor.
template <typename Grad>
__device__ inline void update_piece(const AdamwTensor& t, const AdamwFactors& f, int64_t begin,
                                    int64_t end) {
  for_each_element(begin, end, is_vector(t), [&](auto n, int64_t i) {
    AdamwElements<decltype(n)::value> x;
    load_floats(static_cast<const Grad*>(t.grad) + i, x.grad);
    load_elements(t, i, true, x);
    step_elements(f, x);
    store_elements(t, f, i, true, x);
  });
}

// The same of a tensor that stays as it is: its average moves.
__device__ inline void average_piece(const AdamwTensor& t, const AdamwFactors& f, int64_t begin,
                                     int64_t end) {
  for_each_element(begin, end, is_vector(t), [&](auto n, int64_t i) {
    AdamwElements<decltype(n)::value> x;
    load_elements(t, i, false, x);
    store_average(t, f, i, x);
  });
}

__global__ void __launch_bounds__(kPieceThreads)
    adamw_ema_kernel(const __grid_constant__ AdamwParams p) {
  await_previous_kernel();
  SBRRT_SHARED(AdamwFactors, factors, [1]);
  const int index = tensor_of_block(p.first_block, p.num_tensors);
  const AdamwTensor& t = p.tensors[index];
  if (threadIdx.x == 0) factors[0] = adamw_factors(p.numbers, index, t.weight_decay);
  __syncthreads();
  const AdamwFactors f = factors[0];
  if (f.is_left_out) return;
  const int64_t begin = (static_cast<int>(blockIdx.x) - p.first_block[index]) * kAdamwPiece;
  const int64_t end = begin + kAdamwPiece < t.size ? begin + kAdamwPiece : t.size;
  if (t.grad == nullptr) {
    average_piece(t, f, begin, end);
  } else {
    with_element_type(p.grad_dtype[index], [&](auto type) {
      update_piece<typename decltype(type)::type>(t, f, begin, end);
    });
  }
}

constexpr int kRowsPerWarp = 4;

// The place of the first of rows [count], ascending, that is not below `row`; a warp at once: every
// lane looks at the end of a 32nd.
__device__ inline int64_t lower_bound(const int64_t* rows, int64_t count, int64_t row) {
  int64_t begin = 0, end = count;
  while (begin < end) {
    const int64_t part = ceil_div(end - begin, kWarpSize);
    const int64_t after = begin + (lane_index() + 1) * part, last = (after < end ? after : end) - 1;
    const int num_below = __popc(__ballot_sync(kFullMask, rows[last] < row));
    if (num_below == kWarpSize) return end;
    const int64_t next = begin + num_below * part;
    end = (next + part < end ? next + part : end) - 1;
    begin = next;
  }
  return begin;
}

// One row of the table, by a warp. A row that never had a gradient only decays.
__device__ inline void update_row(const AdamwRowsParams& p, const AdamwFactors& f, int64_t row,
                                  bool is_vector) {
  const AdamwTensor& t = p.tensor;
  const int64_t place = lower_bound(p.rows, p.count, row);
  const bool has_grad = place < p.count && p.rows[place] == row;
  const bool was_touched = __shfl_sync(kFullMask, lane_index() == 0 && p.touched[row], 0);
  const bool has_moments = has_grad || was_touched;
  const float* from = static_cast<const float*>(t.grad) + place * p.width;
  const auto update = [&](auto n, int64_t j) {
    AdamwElements<decltype(n)::value> x;
    const int64_t i = row * p.width + j;
    if (has_grad) load_floats(from + j, x.grad);
    load_elements(t, i, has_moments, x);
    if (has_moments) {
      step_elements(f, x);
    } else {
      decay_elements(f, x);
    }
    store_elements(t, f, i, has_moments, x);
  };
  if (is_vector) {
    for (int64_t j = lane_index() * 4; j < p.width; j += kWarpSize * 4) {
      update(std::integral_constant<int, 4>{}, j);
    }
  } else {
    for (int64_t j = lane_index(); j < p.width; j += kWarpSize) {
      update(std::integral_constant<int, 1>{}, j);
    }
  }
  if (has_grad && lane_index() == 0) p.touched[row] = true;
}

__global__ void __launch_bounds__(kPieceThreads) adamw_ema_rows_kernel(const AdamwRowsParams p) {
  await_previous_kernel();
  SBRRT_SHARED(AdamwFactors, factors, [1]);
  if (threadIdx.x == 0) factors[0] = adamw_factors(p.numbers, 0, p.tensor.weight_decay);
  __syncthreads();
  const AdamwFactors f = factors[0];
  if (f.is_left_out) return;
  const bool vector = is_vector(p.tensor) && p.width % 4 == 0;
  const int64_t first = (int64_t{blockIdx.x} * kPieceWarps + warp_index()) * kRowsPerWarp;
  const int64_t after = first + kRowsPerWarp < p.num_rows ? first + kRowsPerWarp : p.num_rows;
  for (int64_t row = first; row < after; ++row) update_row(p, f, row, vector);
}

}  // namespace

cudaError_t adamw_ema(const AdamwParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.first_block[p.num_tensors]));
  return launch<adamw_ema_kernel>(grid, dim3(kPieceThreads), 0, stream, p);
}

cudaError_t adamw_ema_rows(const AdamwRowsParams& p, cudaStream_t stream) {
  const int64_t num_blocks = p.width > 0 ? ceil_div(p.num_rows, kPieceWarps * kRowsPerWarp) : 0;
  return launch<adamw_ema_rows_kernel>(dim3(static_cast<unsigned>(num_blocks)),
                                       dim3(kPieceThreads), 0, stream, p);
}

}  // namespace sbrrt::cuda
