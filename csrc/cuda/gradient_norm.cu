// The norm of all gradients together and what follows from it, in one launch: each block leaves the sum
// of its piece, and the last one to finish adds these up, in their order.
#include <type_traits>

#include "cuda/adamw.h"
#include "cuda/common/any_dtype.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/pieces.cuh"

namespace sbrrt::cuda {
namespace {

// Over the block; every thread gets the result.
__device__ inline double block_total(double x, double* shared) {
  x = warp_sum(x);
  if (lane_index() == 0) shared[warp_index()] = x;
  __syncthreads();
  x = shared[0];
#pragma unroll
  for (int warp = 1; warp < kPieceWarps; ++warp) x += shared[warp];
  __syncthreads();
  return x;
}

template <typename T>
__device__ inline double squares_of(const T* data, int64_t begin, int64_t end) {
  float sum = 0.0f;
  const bool is_vector = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for_each_element(begin, end, is_vector, [&](auto n, int64_t i) {
    float x[decltype(n)::value];
    load_floats(data + i, x);
#pragma unroll
    for (int k = 0; k < decltype(n)::value; ++k) sum = fmaf(x[k], x[k], sum);
  });
  return sum;
}

__device__ inline double squares_of_piece(const GradientNormParams& p) {
  const int index = tensor_of_block(p.first_block, p.num_tensors);
  const int64_t begin = (static_cast<int>(blockIdx.x) - p.first_block[index]) * kAdamwPiece;
  const int64_t size = p.size[index], end = begin + kAdamwPiece < size ? begin + kAdamwPiece : size;
  return with_element_type(p.dtype[index], [&](auto type) {
    using T = typename decltype(type)::type;
    return squares_of(static_cast<const T*>(p.data[index]), begin, end);
  });
}

// NaN for a norm that is not finite.
__device__ inline void write_norm(const GradientNormParams& p, float norm) {
  const bool is_finite = norm - norm == 0.0f;
  double factor = 1.0;
  if (p.max_norm > 0.0 && p.max_norm < norm + 1e-6) factor = p.max_norm / (norm + 1e-6);
  p.out[0] = norm;
  p.out[1] = is_finite ? static_cast<float>(factor) : norm - norm;
  p.out[2] = is_finite ? 1.0f : 0.0f;
}

// Between blocks numbers pass by atomics, which no cache holds back.
__device__ inline void publish(unsigned long long* to, double x) {
  unsigned long long bits;
  memcpy(&bits, &x, sizeof(bits));
  atomicExch(to, bits);
}
__device__ inline double published(unsigned long long* from) {
  const unsigned long long bits = atomicOr(from, 0ull);
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

__global__ void __launch_bounds__(kPieceThreads)
    gradient_norm_kernel(const __grid_constant__ GradientNormParams p) {
  await_previous_kernel();
  SBRRT_SHARED(double, shared, [kPieceWarps]);
  SBRRT_SHARED(bool, is_last, [1]);
  const double sum = block_total(squares_of_piece(p), shared);
  if (threadIdx.x == 0) {
    publish(p.partial + p.partial_begin + blockIdx.x, sum);
    __threadfence();
    is_last[0] = atomicAdd(p.ticket, 1u) + 1 == p.num_partial;
  }
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  double total = 0.0;
  for (int64_t i = threadIdx.x; i < p.num_partial; i += kPieceThreads) {
    total += published(p.partial + i);
  }
  total = block_total(total, shared);
  if (threadIdx.x == 0) write_norm(p, static_cast<float>(sqrt(total)));
}

}  // namespace

cudaError_t gradient_norm(const GradientNormParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.first_block[p.num_tensors]));
  return launch<gradient_norm_kernel>(grid, dim3(kPieceThreads), 0, stream, p);
}

}  // namespace sbrrt::cuda
