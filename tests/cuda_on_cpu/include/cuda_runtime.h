// CUDA's runtime for host C++: the names that the kernels of csrc/cuda use, given CUDA's meaning on
// fibers by cuda_on_cpu/machine.h. What is missing here no kernel needed yet; `__shared__` and
// `<<<>>>` are missing on purpose (SBRRT_SHARED and launch stand for them), as are float atomics,
// which would make results depend on timing.
#pragma once

#include <math.h>
#include <string.h>

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#include <cuda_on_cpu/vector_types.h>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#include <cuda_on_cpu/host_api.h>
#include <cuda_on_cpu/machine.h>
#include <cuda_on_cpu/math.h>
#include <cuda_on_cpu/warp.h>
