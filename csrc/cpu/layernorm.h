// What the LayerNorm kernels are given; shared by dropout_add_layernorm and embed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/row_blocks.h"
#include "cpu/rows.h"

namespace sbrrt {

// Parameters are [padded_width(width)].
struct LayerNormParameters {
  const float *weight, *shift;
  float eps;
};

struct LayerNormStatistics {
  const float *mean, *rstd;  // [num_rows]
};

// Column sums over a block of rows, [padded_width(width)] each; bias may be null.
struct LayerNormSums {
  float *weight, *shift, *bias;
};

// Rows whose passes alternate, so that a row's sums are added up while the next is read, and whose
// gradients are added to a block's column sums in one pass.
constexpr int kRowsPerGroup = 2;

// A thread's rows of floats and the random words of a group's rows.
class LayerNormBuffers {
 public:
  explicit LayerNormBuffers(int64_t width)
      : padded_(padded_width(width)),
        floats_(kNumRows * padded_),
        words_(kRowsPerGroup * (padded_ + kWordPadding)) {}

  float* row(int64_t i) { return floats_.get() + i * padded_; }
  uint32_t* words(int64_t i = 0) { return words_.get() + i * (padded_ + kWordPadding); }

  static constexpr int64_t kWordPadding = 160;  // dropout_words_capacity(n) <= n + this

 private:
  static constexpr int kNumRows = 3 + 2 * kRowsPerGroup;
  int64_t padded_;
  AlignedArray<float> floats_;
  AlignedArray<uint32_t> words_;
};

// Rows per block of the column sums: fixed, so the sums do not depend on the number of threads.
constexpr int64_t kLayerNormBlockRows = 32;

inline int64_t num_layernorm_blocks(int64_t num_rows) {
  return num_blocks_of(num_rows, kLayerNormBlockRows);
}

// Calls run(buffers, block, begin, end) for every block of rows, on all threads; the last rows have
// a tangent.
template <typename F>
void for_each_layernorm_block(int64_t num_rows, int64_t width, F run, int64_t num_tangents = 0) {
  share_blocks(num_rows, kLayerNormBlockRows, num_rows - num_tangents, [&](int64_t first,
                                                                           int64_t last) {
    LayerNormBuffers buffers(width);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kLayerNormBlockRows;
      run(buffers, block, begin, std::min(begin + kLayerNormBlockRows, num_rows));
    }
  });
}

}  // namespace sbrrt
