// What the Params structs of several ops have in common. Needs neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "cuda/element_type.h"

namespace sbrrt::cuda {

SBRRT_HOST_DEVICE constexpr int dtype_size(ElementType dtype) {
  return dtype == ElementType::kFloat ? 4 : 2;
}

// Row n starts n * stride elements after data; its elements lie side by side.
struct ConstRows {
  const void* data;
  int64_t stride;
};

struct Rows {
  void* data;
  int64_t stride;
};

// Dropout as common/dropout.h has it; seed and step lie in device memory.
struct DropoutParams {
  const int64_t* rng;  // [2], seed and step
  int64_t site;
  uint32_t threshold;  // of random words; 0: nothing is dropped
  float scale;         // of what is kept, 1 / (1 - p)
};

// Element (n, j) of rows has the logical index offsets[n] + j.
struct RowDropoutParams {
  DropoutParams dropout;
  const int64_t* offsets;  // [num_rows]
};

// Blocks of rows whose column sums are added up by one block of threads. The cut depends on the
// number of rows alone, so the sums are the same on every device.
constexpr int64_t kRowsPerBlock = 4;   // at least: few rows must still fill a GPU
constexpr int64_t kMaxRowBlocks = 512;  // so that the sums of blocks stay few

SBRRT_HOST_DEVICE constexpr int64_t rows_per_block(int64_t num_rows) {
  const int64_t groups = (num_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int64_t share = (groups + kMaxRowBlocks - 1) / kMaxRowBlocks;
  return kRowsPerBlock * (share > 1 ? share : 1);
}

SBRRT_HOST_DEVICE constexpr int64_t num_row_blocks(int64_t num_rows) {
  return (num_rows + rows_per_block(num_rows) - 1) / rows_per_block(num_rows);
}

}  // namespace sbrrt::cuda
