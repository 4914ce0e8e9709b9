// What the LayerNorm kernels are given; shared by dropout_add_layernorm and embed.
#pragma once

#include <cstdint>
#include <vector>

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

// Column sums over a block of rows, [padded_width(width)] each.
struct LayerNormSums {
  float *weight, *shift, *bias;
};

// A thread's rows of floats and a row's random words.
class LayerNormBuffers {
 public:
  LayerNormBuffers(int64_t width, int64_t num_words)
      : padded_(padded_width(width)), floats_(kNumRows * padded_), words_(num_words) {}

  float* row(int i) { return floats_.data() + i * padded_; }
  uint32_t* words() { return words_.data(); }

 private:
  static constexpr int kNumRows = 8;
  int64_t padded_;
  std::vector<float> floats_;
  std::vector<uint32_t> words_;
};

// Rows per block of the column sums: fixed, so the sums do not depend on the number of threads.
constexpr int64_t kLayerNormBlockRows = 32;

inline int64_t num_layernorm_blocks(int64_t num_rows) {
  return (num_rows + kLayerNormBlockRows - 1) / kLayerNormBlockRows;
}

}  // namespace sbrrt
