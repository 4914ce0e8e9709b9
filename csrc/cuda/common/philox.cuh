// The random stream of a dropout site, from the seed and step in device memory.
#pragma once

#include "common/dropout.h"
#include "common/philox.h"
#include "cuda/common/device.cuh"

namespace sbrrt::cuda {

// rng: int64[2], seed and step; read in the kernel, so that a captured graph can be replayed.
__device__ inline PhiloxStream philox_stream(const int64_t* rng, int64_t site) {
  const uint64_t seed = static_cast<uint64_t>(rng[0]);
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          static_cast<uint32_t>(site),
          static_cast<uint32_t>(rng[1])};
}

}  // namespace sbrrt::cuda
