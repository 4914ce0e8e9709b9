// Which probabilities of a block dropout keeps, a bit each, for the instruction set with products
// of bfloat16. Included after attention_softmax.h.

namespace sbrrt::SBRRT_ISA {

// Bit i of bits[v stride + key] belongs to query 16 v + i.
struct KeptBits {
  uint16_t* bits = nullptr;
  int stride = 0;

  __mmask16 of(int vector, int key) const { return bits[vector * stride + key]; }

  // Of this key and, in the upper half, the next.
  __mmask32 of_two(int vector, int key) const {
    uint32_t both;
    std::memcpy(&both, bits + vector * stride + key, sizeof(both));
    return both;
  }
};

// The blocks of Philox that hold four keys of 16 queries: of even queries, then of odd ones.
struct QuadBlocks {
  alignas(64) uint64_t first[2 * kNumLanes];

  QuadBlocks(uint64_t element, uint64_t step) {
    for (int i = 0; i < kNumLanes; ++i) {
      first[i] = (element + 2 * i * step) / 4;
      first[kNumLanes + i] = (element + (2 * i + 1) * step) / 4;
    }
  }
};

// A vector's bits of keys 0 ... num_keys - 1 (of whole groups of eight keys), if every query begins
// a block of Philox.
inline void draw_whole_bits(const AttentionDropout& dropout, uint64_t element, uint64_t step,
                            int num_keys, uint16_t* bits) {
  static_assert(kPhiloxUnroll == 4 && kNumLanes == 8);
  const QuadBlocks quads(element, step);
  const Lanes even = load(quads.first), odd = load(quads.first + kNumLanes);
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(dropout.threshold));
  for (int key = 0; key < num_keys; key += 8) {
    const Lanes quad = broadcast(key / 4), next = broadcast(key / 4 + 1);
    const PhiloxGroup group({even + quad, odd + quad, even + next, odd + next}, dropout.stream);
    SBRRT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const auto& word = group.word[i % 4];
      const Lanes words = join(word[i / 4 * 2], word[i / 4 * 2 + 1]);
      bits[key + i] = _mm512_cmpge_epu32_mask(words, limit);
    }
  }
}

// The same from words, for any place of a block's first element.
inline void compare_words(const DropoutWords& words, int query, int num_keys, uint16_t* bits) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(words.threshold));
  for (int key = 0; key < num_keys; ++key) {
    bits[key] = _mm512_cmpge_epu32_mask(_mm512_loadu_si512(words.of(key, query)), limit);
  }
  std::fill(bits + num_keys, bits + round_up(num_keys, 8), 0);
}

// Bits of num_queries x num_keys probabilities, element being the first one's index and step the
// distance from query to query.
inline KeptBits draw_bits(const AttentionDropout& dropout, uint64_t element, uint64_t step,
                          int num_queries, int num_keys, AttentionScratch& scratch) {
  const int num_vectors = round_up(num_queries, kVecSize) / kVecSize;
  const KeptBits kept{scratch.pairs.kept.of(num_vectors * round_up(num_keys, 8)),
                      round_up(num_keys, 8)};
  if (step % 4 == 0 && element % 4 == 0) {
    for (int v = 0; v < num_vectors; ++v) {
      draw_whole_bits(dropout, element + v * kVecSize * step, step, num_keys,
                      kept.bits + v * kept.stride);
    }
    return kept;
  }
  const DropoutWords words = draw_words(dropout, element, step, num_queries, num_keys, scratch);
  for (int v = 0; v < num_vectors; ++v) {
    compare_words(words, v * kVecSize, num_keys, kept.bits + v * kept.stride);
  }
  return kept;
}

}  // namespace sbrrt::SBRRT_ISA
