// Limits of packed attention and the logical index of its probabilities. Shared by host and device;
// needs no torch header.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sbrrt {

constexpr int kMaxAttentionLength = 512;

// Dropout's index of the probability (row, head, query 0, key 0); query and key then count against
// max_positions: query * max_positions + key further on.
SBRRT_HOST_DEVICE inline uint64_t attention_element(int64_t row, int64_t num_heads, int64_t head,
                                                    int64_t max_positions) {
  return (static_cast<uint64_t>(row) * num_heads + head) * max_positions * max_positions;
}

}  // namespace sbrrt
