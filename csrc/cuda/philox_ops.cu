// Dropout's factors, the random words behind them, and normal numbers: functions of the elements'
// logical indices. A thread makes the words of N neighbouring elements.
#include "cuda/philox_ops.h"

#include "cuda/common/dropout.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kThreads = 256;

// make(words, to) for every N elements of the rows, where `to` is their place in the result.
template <typename T, int N, typename F>
__device__ inline void for_each_words(const PhiloxRowsParams& p, F make) {
  const int64_t per_row = p.width / N, index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= p.num_rows * per_row) return;
  const int64_t row = index / per_row, column = index % per_row * N;
  uint32_t words[N];
  philox_words(p.offsets[row] + column, philox_stream(p.rng, p.site), words);
  make(words, static_cast<T*>(p.out) + row * p.width + column);
}

template <typename Bits, int N>
__global__ void __launch_bounds__(kThreads) dropout_mask_kernel(const DropoutMaskParams p) {
  await_previous_kernel();
  for_each_words<Bits, N>(p.rows, [&](const uint32_t(&words)[N], Bits* to) {
    Vec<Bits, N> factors;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      factors[i] = words[i] >= p.threshold ? static_cast<Bits>(p.kept_bits) : Bits{0};
    }
    store<N>(to, factors);
  });
}

template <int N>
__global__ void __launch_bounds__(kThreads) philox_bits_kernel(const PhiloxRowsParams p) {
  await_previous_kernel();
  for_each_words<uint32_t, N>(p, [&](const uint32_t(&words)[N], uint32_t* to) {
    Vec<uint32_t, N> bits;
#pragma unroll
    for (int i = 0; i < N; ++i) bits[i] = words[i];
    store<N>(to, bits);
  });
}

// sin and cos of |x| <= pi / 4, relative error below 1e-9: Taylor's series.
__device__ inline double short_sine(double x) {
  const double z = x * x;
  double series = fma(z, -1.0 / 39916800, 1.0 / 362880);
  series = fma(series, z, -1.0 / 5040);
  series = fma(series, z, 1.0 / 120);
  series = fma(series, z, -1.0 / 6);
  return fma(series * z, x, x);
}
__device__ inline double short_cosine(double x) {
  const double z = x * x;
  double series = fma(z, 1.0 / 479001600, -1.0 / 3628800);
  series = fma(series, z, 1.0 / 40320);
  series = fma(series, z, -1.0 / 720);
  series = fma(series, z, 1.0 / 24);
  series = fma(series, z, -0.5);
  return fma(series, z, 1.0);
}

// Box and Muller (docs/math/smart_ascend.md). The angle's quadrant is cut off in whole numbers.
__device__ inline void normal_pair(uint32_t first, uint32_t second, float* to) {
  const double radius = sqrt(-2.0 * log((first + 1.0) * 0x1p-32));
  const uint32_t shifted = second + 0x20000000u, quadrant = shifted >> 30;
  const int32_t rest = static_cast<int32_t>(second - (shifted & 0xC0000000u));
  const double x = rest * (6.28318530717958647692 * 0x1p-32);
  const float near = static_cast<float>(radius * short_cosine(x));
  const float far = static_cast<float>(radius * short_sine(x));
  const float cosine = quadrant % 2 == 0 ? near : far, sine = quadrant % 2 == 0 ? far : near;
  to[0] = quadrant == 1 || quadrant == 2 ? -cosine : cosine;
  to[1] = quadrant >= 2 ? -sine : sine;
}

__global__ void __launch_bounds__(kThreads) smart_noise_kernel(const PhiloxRowsParams p) {
  await_previous_kernel();
  for_each_words<float, 4>(p, [&](const uint32_t(&words)[4], float* to) {
    Vec<float, 4> normals;
    normal_pair(words[0], words[1], normals.at);
    normal_pair(words[2], words[3], normals.at + 2);
    store<4>(to, normals);
  });
}

template <auto kernel, typename Params>
cudaError_t launch_rows(const PhiloxRowsParams& rows, int n, const Params& p,
                        cudaStream_t stream) {
  const int64_t num_threads = rows.num_rows * (rows.width / n);
  const dim3 grid(static_cast<unsigned>(ceil_div(num_threads, kThreads)));
  return launch<kernel>(grid, dim3(kThreads), 0, stream, p);
}

template <typename Bits>
cudaError_t launch_mask(const DropoutMaskParams& p, cudaStream_t stream) {
  if (p.rows.width % 4 == 0) {
    return launch_rows<dropout_mask_kernel<Bits, 4>>(p.rows, 4, p, stream);
  }
  return launch_rows<dropout_mask_kernel<Bits, 1>>(p.rows, 1, p, stream);
}

}  // namespace

cudaError_t dropout_mask(const DropoutMaskParams& p, cudaStream_t stream) {
  switch (p.item_size) {
    case 2: return launch_mask<uint16_t>(p, stream);
    case 4: return launch_mask<uint32_t>(p, stream);
    case 8: return launch_mask<uint64_t>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t philox_bits(const PhiloxRowsParams& p, cudaStream_t stream) {
  if (p.width % 4 == 0) return launch_rows<philox_bits_kernel<4>>(p, 4, p, stream);
  return launch_rows<philox_bits_kernel<1>>(p, 1, p, stream);
}

cudaError_t smart_noise(const PhiloxRowsParams& p, cudaStream_t stream) {
  return launch_rows<smart_noise_kernel>(p, 4, p, stream);
}

}  // namespace sbrrt::cuda
