// Dropout as a function: an element is kept iff its Philox word >= floor(p * 2^32); a kept one is
// scaled by 1 / (1 - p). Shared by host and device; needs no torch header.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sbrrt {

// For 0 <= p < 1.
SBRRT_HOST_DEVICE inline uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(p * 4294967296.0);
}

SBRRT_HOST_DEVICE inline double dropout_scale(double p) { return 1.0 / (1.0 - p); }

}  // namespace sbrrt
