// The words of many Philox blocks at once. Included once per instruction set.
#include "cpu/philox_lanes.h"

namespace sbrrt::SBRRT_ISA {

// Blocks in flight, enough to cover the latency of a multiplication: 4 measured best on AVX2 and
// AVX-512 (2 and 1 are 5% and 13% slower).
constexpr int kPhiloxUnroll = 4;
constexpr int kPhiloxGroup = kNumLanes * kPhiloxUnroll;

// The four words of kPhiloxGroup blocks, each in the low half of its lane.
struct PhiloxGroup {
  Lanes word[4][kPhiloxUnroll];

  PhiloxGroup(const uint64_t* blocks, const PhiloxStream& stream) {
    Lanes numbers[kPhiloxUnroll];
    SBRRT_UNROLL
    for (int u = 0; u < kPhiloxUnroll; ++u) numbers[u] = load(blocks + u * kNumLanes);
    draw(numbers, stream);
  }

  PhiloxGroup(const Lanes (&blocks)[kPhiloxUnroll], const PhiloxStream& stream) {
    draw(blocks, stream);
  }

 private:
  void draw(const Lanes (&blocks)[kPhiloxUnroll], const PhiloxStream& stream) {
    const Lanes multiplier0 = broadcast(kPhiloxMultiplier0);
    const Lanes multiplier1 = broadcast(kPhiloxMultiplier1);
    auto& [c0, c1, c2, c3] = word;
    SBRRT_UNROLL
    for (int u = 0; u < kPhiloxUnroll; ++u) {
      c0[u] = blocks[u];
      c1[u] = high_half(c0[u]);
      c2[u] = broadcast(stream.site);
      c3[u] = broadcast(stream.step);
    }
    PhiloxKey key = stream.key;
    SBRRT_UNROLL
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Lanes key0 = broadcast(key.low), key1 = broadcast(key.high);
      SBRRT_UNROLL
      for (int u = 0; u < kPhiloxUnroll; ++u) {
        const Lanes product0 = multiply_low(c0[u], multiplier0);
        const Lanes product1 = multiply_low(c2[u], multiplier1);
        c0[u] = xor3(high_half(product1), c1[u], key0);
        c1[u] = product1;
        c2[u] = xor3(high_half(product0), c3[u], key1);
        c3[u] = product0;
      }
      key.low += kPhiloxWeyl0;
      key.high += kPhiloxWeyl1;
    }
  }
};

// blocks [num_blocks] -> words [4 * num_blocks]; num_blocks is a multiple of kPhiloxGroup.
inline void philox_words(const uint64_t* blocks, int num_blocks, const PhiloxStream& stream,
                         uint32_t* words) {
  for (int start = 0; start < num_blocks; start += kPhiloxGroup) {
    const PhiloxGroup group(blocks + start, stream);
    SBRRT_UNROLL
    for (int u = 0; u < kPhiloxUnroll; ++u) {
      const Lanes low = join(group.word[0][u], group.word[1][u]);
      const Lanes high = join(group.word[2][u], group.word[3][u]);
      store_interleaved(words + 4 * (start + u * kNumLanes), low, high);
    }
  }
}

// The same by word: words [4, num_blocks].
inline void philox_planes(const uint64_t* blocks, int num_blocks, const PhiloxStream& stream,
                          uint32_t* words) {
  for (int start = 0; start < num_blocks; start += kPhiloxGroup) {
    const PhiloxGroup group(blocks + start, stream);
    SBRRT_UNROLL
    for (int c = 0; c < 4; ++c) {
      SBRRT_UNROLL
      for (int u = 0; u < kPhiloxUnroll; ++u) {
        store_low_halves(words + c * num_blocks + start + u * kNumLanes, group.word[c][u]);
      }
    }
  }
}

}  // namespace sbrrt::SBRRT_ISA
