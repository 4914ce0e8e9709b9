// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random
// words as a function of a counter and a key. Shared by host and device; needs no torch header.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sbrrt {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxWords {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t low, high;
};

// Everything of the counter and the key but the number of the block.
struct PhiloxStream {
  PhiloxKey key;  // the seed's halves
  uint32_t site, step;
};

SBRRT_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t* c = counter.word;
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c[0];
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key.low,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key.high,
                static_cast<uint32_t>(product0)}};
    key.low += kPhiloxWeyl0;
    key.high += kPhiloxWeyl1;
  }
  return counter;
}

// The words of elements 4 * block ... 4 * block + 3 of a stream.
SBRRT_HOST_DEVICE inline PhiloxWords philox_block(uint64_t block, const PhiloxStream& stream) {
  return philox4x32({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                      stream.site, stream.step}},
                    stream.key);
}

}  // namespace sbrrt
