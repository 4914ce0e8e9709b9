// The launchers of dropout_mask, philox_bits and smart_noise, for tests/cuda_on_cpu/kernels.
#include "cuda/philox_ops.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

#define ROWS                                                                                  \
  int64_t num_rows, int64_t width, const int64_t *rng, const int64_t *offsets, int64_t site, \
      void *out
#define MAKE_ROWS {num_rows, width, rng, offsets, site, out}

cudaError_t mask(ROWS, double p, int64_t kept_bits, int64_t item_size) {
  return dropout_mask({MAKE_ROWS, sbrrt::dropout_threshold(p), static_cast<uint64_t>(kept_bits),
                       static_cast<int>(item_size)},
                      nullptr);
}

cudaError_t bits(ROWS) { return philox_bits(MAKE_ROWS, nullptr); }

cudaError_t noise(ROWS) { return smart_noise(MAKE_ROWS, nullptr); }

}  // namespace

CUDA_ON_CPU_EXPORT(mask)
CUDA_ON_CPU_EXPORT(bits)
CUDA_ON_CPU_EXPORT(noise)
