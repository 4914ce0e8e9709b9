// smart_noise on the CPU: normal numbers of elements offsets[n] + j of a Philox stream.
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "common/philox_op.h"

namespace sbrrt {
namespace {

constexpr int kNoisePairs = 192;  // a row of 384 features in one run; all buffers stay in L1

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/smart_noise_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kRunSize = 2 * kNoisePairs;

void noise_run(int64_t offset, int64_t count, const PhiloxStream& stream, float* out) {
  SBRRT_RETURN_ON_THIS_CPU(noise_run, offset, count, stream, out)
}

// Offsets are contiguous.
void check_noise_range(const at::Tensor& offsets, int64_t width) {
  const int64_t* data = offsets.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < offsets.size(0); ++n) {
    TORCH_CHECK_VALUE(data[n] >= 0 && data[n] <= std::numeric_limits<int64_t>::max() - width,
                      "sbrrt::smart_noise: offsets must be in [0, 2^63 - width), got ", data[n]);
  }
}

}  // namespace

void SmartNoise::run_cpu() const {
  const PhiloxStream stream = philox_stream(kOp, rng, site);
  const at::Tensor starts = offsets.contiguous();
  const int64_t width = out.size(1), runs_per_row = (width - 1) / kRunSize + 1;
  check_noise_range(starts, width);
  const int64_t* data = starts.const_data_ptr<int64_t>();
  float* result = out.mutable_data_ptr<float>();
  at::parallel_for(0, out.size(0) * runs_per_row, 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / runs_per_row, first = i % runs_per_row * kRunSize;
      const int64_t count = std::min(kRunSize, width - first);
      noise_run(data[row] + first, count, stream, result + row * width + first);
    }
  });
}

}  // namespace sbrrt
