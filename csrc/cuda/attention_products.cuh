// Products of small matrices by one warp, for half precision on tensor cores and for fp32 without.
//
// Results are tiles of 16 x 8 in the layout of mma's accumulator: lane = 4 g + t holds, of tile j,
// c[j][0], c[j][1] in row g, columns 8 j + 2 t and + 1, and c[j][2], c[j][3] in row g + 8. Operands
// in shared memory are rows of kDim features, kRowStride apart.
#pragma once

#include "cuda/attention_tuning.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/vec.cuh"

namespace sbrrt::cuda {

// 16 bytes more than a row holds, so that the same part of eight rows lies in different banks.
template <typename T, int kDim>
constexpr int kRowStride = kDim + kVecSize<T>;

__device__ inline int tile_row() { return lane_index() / 4; }
__device__ inline int tile_column() { return lane_index() % 4 * 2; }

__device__ inline float dot(const Vec<float, 4>& a, const Vec<float, 4>& b, float sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// c += a b^T, a of 16 rows, b of num_rows; the tiles of b's rows beyond them stay as they are.
template <int kDim, int kTiles>
__device__ inline void multiply_rows(float (&c)[kTiles][4], const float* a, const float* b,
                                     int num_rows) {
  constexpr int kStride = kRowStride<float, kDim>;
  a += tile_row() * kStride;
  b += tile_column() * kStride;
#pragma unroll 2
  for (int k = 0; k < kDim; k += 4) {
    const Vec<float, 4> a0 = load<4>(a + k), a1 = load<4>(a + 8 * kStride + k);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= num_rows) break;
      const Vec<float, 4> b0 = load<4>(b + 8 * j * kStride + k);
      const Vec<float, 4> b1 = load<4>(b + (8 * j + 1) * kStride + k);
      c[j][0] = dot(a0, b0, c[j][0]);
      c[j][1] = dot(a0, b1, c[j][1]);
      c[j][2] = dot(a1, b0, c[j][2]);
      c[j][3] = dot(a1, b1, c[j][3]);
    }
  }
}

template <int kDim, typename T, int kTiles>
  requires(sizeof(T) == 2)
__device__ inline void multiply_rows(float (&c)[kTiles][4], const T* a, const T* b, int num_rows) {
  constexpr int kStride = kRowStride<T, kDim>;
  const int lane = lane_index();
  a += lane % 16 * kStride + lane / 16 * 8;
  b += (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t left[4];
    ldmatrix_x4(left, a + k);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      if (8 * j >= num_rows) break;
      uint32_t right[4];  // of tiles j and j + 1
      ldmatrix_x4(right, b + 8 * j * kStride + k);
      mma_m16n8k16<T>(c[j], left, {right[0], right[1]});
      mma_m16n8k16<T>(c[j + 1], left, {right[2], right[3]});
    }
  }
}

// c += p b, p the tiles of a result, b of num_rows rows; p is zero beyond them. Rows are summed in
// eights: 512 in one go would round more than they have to.
template <int kDim, int kTiles>
__device__ inline void multiply_tiles(float (&c)[kDim / 8][4], const float (&p)[kTiles][4],
                                      const float* b, int num_rows) {
  constexpr int kStride = kRowStride<float, kDim>;
  b += tile_column();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    if (8 * j >= num_rows) break;
    float upper[8], lower[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int holder = lane_index() / 4 * 4 + k / 2;
      upper[k] = __shfl_sync(kFullMask, p[j][k % 2], holder);
      lower[k] = __shfl_sync(kFullMask, p[j][2 + k % 2], holder);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const Vec<float, 2> right = load<2>(b + (8 * j + k) * kStride + 8 * n);
        sum[0] = fmaf(upper[k], right[0], sum[0]);
        sum[1] = fmaf(upper[k], right[1], sum[1]);
        sum[2] = fmaf(lower[k], right[0], sum[2]);
        sum[3] = fmaf(lower[k], right[1], sum[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] += sum[i];
    }
  }
}

template <int kDim, typename T, int kTiles>
  requires(sizeof(T) == 2)
__device__ inline void multiply_tiles(float (&c)[kDim / 8][4], const float (&p)[kTiles][4],
                                      const T* b, int num_rows) {
  constexpr int kStride = kRowStride<T, kDim>;
  const int lane = lane_index();
  b += lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    if (8 * j >= num_rows) break;
    const uint32_t left[4] = {pack2<T>(p[j][0], p[j][1]), pack2<T>(p[j][2], p[j][3]),
                              pack2<T>(p[j + 1][0], p[j + 1][1]),
                              pack2<T>(p[j + 1][2], p[j + 1][3])};
#pragma unroll
    for (int n = 0; n < kDim; n += 16) {
      uint32_t right[4];  // of columns n ... n + 7 and n + 8 ... n + 15
      ldmatrix_x4_trans(right, b + 8 * j * kStride + n);
      mma_m16n8k16<T>(c[n / 8], left, {right[0], right[1]});
      mma_m16n8k16<T>(c[n / 8 + 1], left, {right[2], right[3]});
    }
  }
}

}  // namespace sbrrt::cuda
