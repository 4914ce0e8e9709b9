// The Philox words of a run of elements, for vec_keep. Included after vec.h.
#include "cpu/philox_words.h"

namespace sbrrt::SBRRT_ISA {

constexpr int64_t kWordsPerGroup = 4 * kPhiloxGroup;

// How many words the buffer of a run must hold, for any offset: whole groups, and a Vec past them.
inline int64_t dropout_words_capacity(int64_t count) {
  return (count + 3 + kWordsPerGroup - 1) / kWordsPerGroup * kWordsPerGroup + kVecSize;
}

// The words of elements offset ... offset + count - 1 start at the result, which points into
// `words` (dropout_words_capacity(count) of them). Short runs waste most of a group of
// kWordsPerGroup words: gather the blocks of several runs and call philox_words instead.
inline const uint32_t* dropout_words(int64_t offset, int64_t count, const PhiloxStream& stream,
                                     uint32_t* words) {
  const int64_t skipped = offset % 4, first = offset / 4;
  alignas(64) uint64_t blocks[kPhiloxGroup];
  for (int64_t start = 0; start < count + skipped; start += kWordsPerGroup) {
    for (int i = 0; i < kPhiloxGroup; ++i) blocks[i] = static_cast<uint64_t>(first + start / 4 + i);
    philox_words(blocks, kPhiloxGroup, stream, words + start);
  }
  return words + skipped;
}

}  // namespace sbrrt::SBRRT_ISA
