// What attention's kernels are tuned by, per element type, head dimension and keys of a chunk, with
// the reasons. The mean lengths are reasoned, not measured; what registers allow is nvcc's report for
// sm_80 and sm_90 (.ci/cuda-check). docs/kernels.md has the tables that follow from this.
#pragma once

#include "cuda/common/device.cuh"

namespace sbrrt::cuda {

constexpr int kTile = 16;  // rows of a warp's tile (mma's); every sequence is padded to a multiple

// The keys of a warp's chunk are a template argument. A short kernel has all keys of a sequence in one
// chunk: 128 of them are what registers hold beside the results. A long one goes through the sequence
// chunk by chunk and has a block of as many queries: two buffers of 64 keys fit in shared memory.
constexpr int kMaxShortKeys = 128, kMaxLongKeys = 64;

struct AttentionChoice {
  // A short kernel for K keys reserves registers for all of them. Where sequences have at most
  // K / kKeysPerMeanToken tokens on average, that is four times what most use: a long one runs.
  static constexpr int kKeysPerMeanToken = 4;
  // Up to this mean most sequences fit in one chunk of 32 keys of a long kernel.
  static constexpr int64_t kSmallChunkMean = 32;
  // Tiles of a short block: its four warps have one each. Shorter sequences share a block by heads.
  static constexpr int kTilesPerBlock = 4;
  // Up to this mean four warps suffice for a block of up to eight tiles.
  static constexpr int64_t kFewWarpsMean = 64;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kIsBeforeHopper = true;
#else
constexpr bool kIsBeforeHopper = false;
#endif

template <typename T, int kDim, int kKeys>
struct AttentionTuning {
  static constexpr int kShortThreads = (kKeys > 64 ? 8 : 4) * kWarpSize;  // at most
  static constexpr int kLongThreads = kKeys / kTile * kWarpSize;          // a tile per warp

  // Blocks that a multiprocessor must have registers for; 0 leaves their number to the compiler,
  // which for the kernels named here spills some bytes to have one more.
  static constexpr bool kIsFloat = sizeof(T) == 4;
  static constexpr int kForwardBlocks = kKeys == 64 && kIsFloat ? 3 : 0;
  static constexpr int kJvpBlocks = kKeys == 64 || (kKeys == 32 && kIsFloat) ? 3 : 0;
  static constexpr int kBackwardBlocks =
      kIsBeforeHopper && kKeys == 64 && kDim == 64 && !kIsFloat ? 2 : 0;
};

}  // namespace sbrrt::cuda
