// Philox words of neighbouring elements, and which elements of a row dropout keeps.
#pragma once

#include "cuda/common/params.h"
#include "cuda/common/philox.cuh"

namespace sbrrt::cuda {

// The words of elements first ... first + 3.
__device__ inline void four_words(uint64_t first, const PhiloxStream& stream, uint32_t* words) {
  const PhiloxWords low = philox_block(first / 4, stream);
  const int skipped = first % 4;
  if (skipped == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = low.word[i];
    return;
  }
  const PhiloxWords high = philox_block(first / 4 + 1, stream);
  const uint32_t all[7] = {low.word[0],  low.word[1],  low.word[2], low.word[3],
                           high.word[0], high.word[1], high.word[2]};
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // a register has no index that is known only at run time
    words[i] = skipped == 1 ? all[i + 1] : skipped == 2 ? all[i + 2] : all[i + 3];
  }
}

// The words of elements first ... first + N - 1; N is 1 or a multiple of 4.
template <int N>
__device__ inline void philox_words(uint64_t first, const PhiloxStream& stream,
                                    uint32_t (&words)[N]) {
  if constexpr (N == 1) {
    const PhiloxWords all = philox_block(first / 4, stream);
    const int i = first % 4;
    words[0] = i < 2 ? (i == 0 ? all.word[0] : all.word[1]) : i == 2 ? all.word[2] : all.word[3];
  } else {
    static_assert(N % 4 == 0);
#pragma unroll
    for (int i = 0; i < N; i += 4) four_words(first + i, stream, words + i);
  }
}

// Dropout of one row.
class RowDropout {
 public:
  __device__ RowDropout(const RowDropoutParams& p, int64_t row)
      : threshold_(p.dropout.threshold), scale_(p.dropout.scale) {
    if (threshold_ == 0) return;
    stream_ = philox_stream(p.dropout.rng, p.dropout.site);
    offset_ = p.offsets[row];
  }

  // Bit i: whether element column + i is kept.
  template <int N>
  __device__ uint32_t kept(int column) const {
    if (threshold_ == 0) return (1u << N) - 1;
    uint32_t words[N], bits = 0;
    philox_words(offset_ + column, stream_, words);
#pragma unroll
    for (int i = 0; i < N; ++i) bits |= (words[i] >= threshold_ ? 1u : 0u) << i;
    return bits;
  }

  __device__ float factor(uint32_t bits, int i) const { return (bits >> i & 1) != 0 ? scale_ : 0.0f; }

 private:
  uint32_t threshold_;
  float scale_;
  PhiloxStream stream_{};
  uint64_t offset_ = 0;
};

}  // namespace sbrrt::cuda
