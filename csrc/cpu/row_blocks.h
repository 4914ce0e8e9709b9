// How ops on rows share them out among threads: in blocks of a fixed number of rows.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace sbrrt {

inline int64_t num_blocks_of(int64_t num_rows, int64_t block_rows) {
  return (num_rows + block_rows - 1) / block_rows;
}

// Calls run(first, last) for ranges of blocks, on all threads. Rows from `first_tangent` on have a
// tangent and take twice as long, so that a thread has fewer of them.
template <typename F>
void share_blocks(int64_t num_rows, int64_t block_rows, int64_t first_tangent, F run) {
  const int64_t num_blocks = num_blocks_of(num_rows, block_rows);
  const auto cost_before = [&](int64_t block) {
    const int64_t row = std::min(block * block_rows, num_rows);
    return row + std::max<int64_t>(row - first_tangent, 0);
  };
  at::parallel_for(0, cost_before(num_blocks), block_rows, [&](int64_t begin, int64_t end) {
    const auto block_at = [&](int64_t cost) {  // the first that does not begin before
      int64_t block = std::min((cost + block_rows - 1) / block_rows, num_blocks);
      while (block > 0 && cost_before(block - 1) >= cost) --block;
      return block;
    };
    run(block_at(begin), block_at(end));
  });
}

}  // namespace sbrrt
