// How every kernel is launched: launch<kernel<float, 64>>(grid, block, shared_bytes, stream, params).
// The kernel is a template argument, so that each one that ships can be listed and counted. Its first
// statement is await_previous_kernel() (device.cuh).
#pragma once

#include "cuda/common/device.cuh"

#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/launch.h>
#else

#include <atomic>

#include "cuda/common/launch_setting.h"

namespace sbrrt::cuda {

constexpr size_t kDefaultSharedBytes = 48 << 10;  // more has to be asked for
constexpr int kMaxDevices = 64;                   // that are remembered

// Of one kernel, an answer per device; 0 where it was not asked for.
class Answers {
 public:
  int on(int device) const {
    return device < kMaxDevices ? answers_[device].load(std::memory_order_relaxed) : 0;
  }
  void remember(int device, int answer) {
    if (device < kMaxDevices) answers_[device].store(answer, std::memory_order_relaxed);
  }

 private:
  std::atomic<int> answers_[kMaxDevices] = {};
};

// Allows a kernel all the shared memory that blocks may take, once per device.
template <auto kernel>
inline cudaError_t allow_shared_bytes(int device) {
  static Answers is_allowed;
  if (is_allowed.on(device)) return cudaSuccess;
  const cudaError_t refusal = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMaxSharedBytes));
  if (refusal == cudaSuccess) is_allowed.remember(device, 1);
  return refusal;
}

// Whether a kernel waits for the one before it by itself. What counts is what its code was compiled
// for: code for an older chip runs on newer ones too, and does not wait.
template <auto kernel>
inline cudaError_t waits_by_itself(int device, bool* result) {
  constexpr int kYes = 1, kNo = 2;
  static Answers known;
  int answer = known.on(device);
  if (answer == 0) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    answer = attributes.ptxVersion >= 90 ? kYes : kNo;
    known.remember(device, answer);
  }
  *result = answer == kYes;
  return cudaSuccess;
}

// Readies a kernel for the current device, and says whether it may start early.
template <auto kernel>
inline cudaError_t prepare(size_t shared_bytes, bool* may_start_early) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = waits_by_itself<kernel>(device, may_start_early);
  if (error == cudaSuccess && shared_bytes > kDefaultSharedBytes) {
    error = allow_shared_bytes<kernel>(device);
  }
  *may_start_early = *may_start_early && programmatic_launch() != 0;
  return error;
}

// A kernel that waits by itself may start before the one in front of it in the stream has ended
// (programmatic dependent launch). A grid without blocks is no error: nothing is launched.
template <auto kernel, typename... Args>
inline cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  bool may_start_early = false;
  const cudaError_t error = prepare<kernel>(shared_bytes, &may_start_early);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = may_start_early;
  cudaLaunchKernelEx(&config, kernel, args...);
  return cudaGetLastError();
}

}  // namespace sbrrt::cuda
#endif
