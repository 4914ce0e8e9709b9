// The Philox words of a run of elements, for vec_keep. Included after vec.h.
#include "cpu/philox_words.h"

namespace sbrrt::SBRRT_ISA {

constexpr int64_t kWordsPerGroup = 4 * kPhiloxGroup;

// How many words the buffer of a run must hold, for any offset: whole groups, and a Vec past them.
inline int64_t dropout_words_capacity(int64_t count) {
  return (count + 3 + kWordsPerGroup - 1) / kWordsPerGroup * kWordsPerGroup + kVecSize;
}

// The words of a run of elements, made group by group as they are needed. Short runs waste most of
// a group of kWordsPerGroup words: gather the blocks of several runs and call philox_words instead.
class DropoutRun {
 public:
  DropoutRun() = default;

  // `words` holds dropout_words_capacity(count) of them; `stream` outlives the run.
  DropoutRun(int64_t offset, const PhiloxStream& stream, uint32_t* words)
      : first_(offset / 4), skipped_(offset % 4), stream_(&stream), words_(words) {}

  // Makes the words of elements 0 ... end - 1 that are not there yet.
  void make(int64_t end) {
    alignas(64) uint64_t blocks[kPhiloxGroup];
    for (; made_ < end + skipped_; made_ += kWordsPerGroup) {
      for (int i = 0; i < kPhiloxGroup; ++i) {
        blocks[i] = static_cast<uint64_t>(first_ + made_ / 4 + i);
      }
      philox_words(blocks, kPhiloxGroup, *stream_, words_ + made_);
    }
  }

  // The word of element 0.
  const uint32_t* words() const { return words_ + skipped_; }

 private:
  int64_t first_ = 0, skipped_ = 0, made_ = 0;
  const PhiloxStream* stream_ = nullptr;
  uint32_t* words_ = nullptr;
};

// The words of elements offset ... offset + count - 1, which start at the result.
inline const uint32_t* dropout_words(int64_t offset, int64_t count, const PhiloxStream& stream,
                                     uint32_t* words) {
  DropoutRun run(offset, stream, words);
  run.make(count);
  return run.words();
}

}  // namespace sbrrt::SBRRT_ISA
