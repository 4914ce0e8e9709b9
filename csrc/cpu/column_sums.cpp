// column_sums_into on the CPU. Threads share out blocks of columns, each of one layer, so a column's
// rows are always added in the same order.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/column_sums_op.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

constexpr int64_t kColumnBlock = 256;  // a row's part is memory that the processor fetches ahead
constexpr int64_t kRowsPerPart = 64;   // whose sum comes first: rounding grows with this, not with all
constexpr int64_t kGrain = 16384;      // elements for which a fork pays

// Some columns of a layer's rows.
struct ColumnRows {
  const void* data;
  int64_t num_rows, width, stride;
  bool is_bfloat16;
};

// Of the first rows; rows without one have 1.
struct ColumnWeights {
  const float* data;
  int64_t count;

  float of(int64_t row) const { return row < count ? data[row] : 1.0f; }
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/column_sums_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

void sum_block(const ColumnRows& rows, const ColumnWeights& weights, float* part, float* out) {
  SBRRT_RETURN_ON_THIS_CPU(sum_columns, rows, weights, part, out)
}

// The columns of one layer from `column` on.
ColumnRows columns_of(const at::Tensor& x, int64_t layer, int64_t column) {
  const int64_t first = layer * x.stride(0) + column;
  const auto* data = static_cast<const char*>(x.const_data_ptr());
  return {data + first * static_cast<int64_t>(x.element_size()), x.size(1),
          std::min(kColumnBlock, x.size(2) - column), x.stride(1),
          x.scalar_type() == at::kBFloat16};
}

}  // namespace

void ColumnSums::run_cpu() const {
  const at::Tensor dense = with_dense_layers(x);
  const at::Tensor dense_weights = weights ? weights->contiguous() : at::Tensor();
  const ColumnWeights of_rows{weights ? dense_weights.const_data_ptr<float>() : nullptr,
                              weights ? dense_weights.size(0) : 0};
  const int64_t num_blocks = (x.size(2) + kColumnBlock - 1) / kColumnBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kColumnBlock * (x.size(1) + 1)));
  at::parallel_for(0, x.size(0) * num_blocks, grain, [&](int64_t begin, int64_t end) {
    const AlignedArray<float> part(kColumnBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t layer = i / num_blocks, column = i % num_blocks * kColumnBlock;
      float* to = out.mutable_data_ptr<float>() + layer * out.stride(0) + column;
      sum_block(columns_of(dense, layer, column), of_rows, part.get(), to);
    }
  });
}

}  // namespace sbrrt
