// Two small kernels, right with bug "none" and wrong in one way with any other: what the machine must
// catch. scale_rows has barriers, shuffles and votes; tile_product has cp.async, ldmatrix and mma.
#include <cuda_on_cpu/export.h>

#include "cuda/common/cp_async.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/vec.cuh"

using namespace sbrrt::cuda;

namespace {

// In the order of BUGS in tests/cuda_on_cpu/test_cuda_on_cpu.py.
enum Bug : int64_t {
  kNone,
  kNoBarrier,
  kBarrierInABranch,
  kTwoBarriers,
  kThreadLeavesEarly,
  kShuffleMaskWithoutItself,
  kShuffleMaskWithoutItsSource,
  kLaneStaysAway,
  kSharedNeverWritten,
  kSharedOutOfBounds,
  kLoadOutOfBounds,
  kStoreOutOfBounds,
  kStoreBefore,
  kHostPointer,
  kMisaligned,
  kBlocksCollide,
  kSyncwarpForgotten,
  kSignedOverflow,
  kWideShift,
  kPreviousKernelNotAwaited,
  kStoreBeforePreviousKernel,
  kNoWait,
  kNoCommit,
  kWaitForTooFew,
  kNoBarrierAfterWait,
  kSwappedFragment,
  kSwappedMatrices,
  kMisalignedRow,
};

constexpr int kWarps = 4;

struct ScaleParams {
  const float* x;  // [num_rows, width]
  float* y;
  int64_t width;
  Bug bug;
};

__device__ float sum_of_block(float x, float* partial, Bug bug) {
  unsigned mask = kFullMask;
  if (bug == kShuffleMaskWithoutItself) mask = 0xffff;
  if (bug == kLaneStaysAway && lane_index() == 7) return x;
  if (bug == kShuffleMaskWithoutItsSource) mask = lane_index() < 16 ? 0xffff : 0xffff0000;
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(mask, x, offset);
  }
  const int num_writers = bug == kSharedNeverWritten ? kWarps - 1 : kWarps;
  const int slot = bug == kSharedOutOfBounds ? warp_index() + 1 : warp_index();
  if (lane_index() == 0 && warp_index() < num_writers) partial[slot] = x;
  if (bug == kTwoBarriers && warp_index() == 0) {
    __syncthreads();
  } else if (bug == kBarrierInABranch ? warp_index() == 0 : bug != kNoBarrier) {
    __syncthreads();
  }
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp];
  return sum;
}

// Two lanes of a warp speak through shared memory.
__device__ void neighbours(float* shared, Bug bug) {
  if (threadIdx.x >= kWarpSize) return;
  shared[lane_index()] = 1.0f;
  if (bug != kSyncwarpForgotten) __syncwarp();
  if (shared[lane_index() ^ 1] != 1.0f) shared[lane_index()] = 0.0f;
}

__device__ int undefined(int x, Bug bug) {
  if (bug == kSignedOverflow) return 0x7fffffff + x;
  if (bug == kWideShift) return 1 << (31 + x);
  return x;
}

__global__ void scale_rows(const __grid_constant__ ScaleParams params) {
  const Bug bug = params.bug;
  if (bug == kStoreBeforePreviousKernel) params.y[blockIdx.x * params.width] = 0.0f;
  if (bug != kPreviousKernelNotAwaited) await_previous_kernel();
  SBRRT_SHARED(float, partial, [kWarps]);
  SBRRT_SHARED(float, greetings, [kWarpSize]);
  if (bug == kThreadLeavesEarly && threadIdx.x == 77) return;
  neighbours(greetings, bug);
  const int one = undefined(blockIdx.x + 1, bug) > 0;
  const int64_t row = bug == kBlocksCollide ? 0 : blockIdx.x, width = params.width;
  const float *x = params.x + row * width, *end = x + width;
  float* y = params.y + row * width;
  if (bug == kLoadOutOfBounds && row + 1 == gridDim.x) end += 1;
  if (bug == kStoreOutOfBounds && row + 1 == gridDim.x) y += 1;
  if (bug == kStoreBefore && row == 0) y -= 1;
  if (bug == kMisaligned) store(y + 1, load<4>(x));
  if (bug == kHostPointer) x = reinterpret_cast<const float*>(uintptr_t{1} << 40), end = x + width;
  float sum = 0;
  for (const float* at = x + threadIdx.x; at < end; at += blockDim.x) sum += one * *at;
  sum = sum_of_block(sum, partial, bug);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) y[i] = x[i] / sum;
}

cudaError_t scale(const float* x, float* y, int64_t num_rows, int64_t width, int64_t bug) {
  const ScaleParams params{x, y, width, static_cast<Bug>(bug)};
  return launch<scale_rows>(num_rows, kWarps * kWarpSize, 0, nullptr, params);
}

struct TileParams {
  const void *a, *b;  // [16, 16]
  float* product;     // a b^T [16, 16]
  Bug bug;
};

constexpr int kTile = 16;

// Two warps; warp w multiplies rows 8 w ... 8 w + 7 of b.
template <typename T>
__global__ void tile_product(const __grid_constant__ TileParams params) {
  await_previous_kernel();
  T* tiles = shared_memory<T>();  // a, then b
  const Bug bug = params.bug;
  const int chunk = threadIdx.x % 32;  // of 8 numbers
  const T* from = static_cast<const T*>(threadIdx.x < 32 ? params.a : params.b) + chunk * 8;
  cp_async_16(tiles + threadIdx.x * 8, from, true);
  if (bug != kNoCommit) cp_async_commit();
  if (bug == kWaitForTooFew) cp_async_wait<1>();
  if (bug != kNoWait && bug != kWaitForTooFew) cp_async_wait<0>();
  if (bug != kNoBarrierAfterWait) __syncthreads();

  const int lane = lane_index(), matrix = lane / 8;
  int row = lane % 8 + 8 * (matrix % 2), column = 8 * (matrix / 2);
  if (bug == kMisalignedRow) column += 4;
  uint32_t a[4], b_of_both[4];
  ldmatrix_x4(a, tiles + row * kTile + column);
  row = lane % 8 + 8 * (matrix / 2), column = 8 * (matrix % 2);
  ldmatrix_x4(b_of_both, tiles + kTile * kTile + row * kTile + column);
  uint32_t b[2] = {b_of_both[2 * warp_index()], b_of_both[2 * warp_index() + 1]};
  if (bug == kSwappedFragment) b[0] = b_of_both[2 * warp_index() + 1], b[1] = b_of_both[0];
  if (bug == kSwappedMatrices) {
    const uint32_t second = a[1];
    a[1] = a[2];
    a[2] = second;
  }
  float c[4] = {};
  mma_m16n8k16<T>(c, a, b);
  float* out = params.product + (lane / 4) * kTile + 8 * warp_index() + 2 * (lane % 4);
  store(out, Vec<float, 2>{c[0], c[1]});
  store(out + 8 * kTile, Vec<float, 2>{c[2], c[3]});
}

cudaError_t product(const void* a, const void* b, float* out, int64_t is_half, int64_t bug) {
  const TileParams params{a, b, out, static_cast<Bug>(bug)};
  const size_t bytes = 2 * kTile * kTile * 2;
  return is_half ? launch<tile_product<__half>>(1, 64, bytes, nullptr, params)
                 : launch<tile_product<__nv_bfloat16>>(1, 64, bytes, nullptr, params);
}

struct CountParams {
  const int64_t* values;
  int* counts;  // [2]: all values, those above zero
  int64_t num_values;
};

__global__ void count(const __grid_constant__ CountParams params) {
  await_previous_kernel();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const bool inside = i < params.num_values;
  const unsigned above = __ballot_sync(kFullMask, inside && params.values[i] > 0);
  if (inside) atomicAdd(&params.counts[0], 1);
  if (lane_index() == 0) atomicAdd(&params.counts[1], __popc(above));
}

cudaError_t count_values(const int64_t* values, int* counts, int64_t num_values) {
  return launch<count>(ceil_div(num_values, 64), 64, 0, nullptr,
                       CountParams{values, counts, num_values});
}

cudaError_t too_large(float* out, int64_t num_threads, int64_t shared_bytes) {
  return launch<scale_rows>(1, num_threads, shared_bytes, nullptr,
                            ScaleParams{out, out, 1, kNone});
}

// What the kernels' conversions make of a number.
struct RoundParams {
  const float* x;
  float *half, *bfloat16;
  int64_t num_values;
};

__global__ void round_trip(const __grid_constant__ RoundParams params) {
  await_previous_kernel();
  for (int64_t i = threadIdx.x; i < params.num_values; i += blockDim.x) {
    params.half[i] = to_float(from_float<__half>(params.x[i]));
    params.bfloat16[i] = to_float(from_float<__nv_bfloat16>(params.x[i]));
  }
}

cudaError_t rounded(const float* x, float* half, float* bfloat16, int64_t num_values) {
  return launch<round_trip>(1, 64, 0, nullptr, RoundParams{x, half, bfloat16, num_values});
}

}  // namespace

CUDA_ON_CPU_EXPORT(scale)
CUDA_ON_CPU_EXPORT(product)
CUDA_ON_CPU_EXPORT(count_values)
CUDA_ON_CPU_EXPORT(too_large)
CUDA_ON_CPU_EXPORT(rounded)
