// Rows of features as a kernel sees them: pointers, strides and dtypes, no tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#include "common/checks.h"
#include "common/dense_rows.h"
#include "common/dropout.h"
#include "common/op.h"
#include "common/philox.h"
#include "cpu/isa.h"

namespace sbrrt {

constexpr int64_t kRowPadding = 16;  // widths of buffers, in floats: the widest Vec

inline int64_t padded_width(int64_t width) {
  return (width + kRowPadding - 1) / kRowPadding * kRowPadding;
}

// Uninitialised memory that whole Vecs do not straddle cache lines in.
template <typename T>
class AlignedArray {
 public:
  explicit AlignedArray(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))) {}

  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Row n starts `n * stride` elements behind data; its elements lie side by side.
struct ConstRows {
  const void* data;
  int64_t stride;
  bool is_bfloat16;
};

struct Rows {
  void* data;
  int64_t stride;
  bool is_bfloat16;
};

// The tensor has dense rows and outlives the view.
inline ConstRows const_rows(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.scalar_type() == at::kBFloat16};
}

inline Rows rows(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.scalar_type() == at::kBFloat16};
}

// A parameter [width] as float32, with zeros up to padded_width(width): itself where it is that.
inline at::Tensor padded_floats(const at::Tensor& parameter) {
  const int64_t width = parameter.size(0);
  if (parameter.scalar_type() == at::kFloat && parameter.stride(0) == 1 &&
      width == padded_width(width)) {
    return parameter;
  }
  const at::Tensor copy = at::zeros({padded_width(width)}, parameter.options().dtype(at::kFloat));
  copy.narrow(0, 0, width).copy_(parameter);
  return copy;
}

// float32 memory in one piece that becomes `result`: its own, or memory that finish() rounds from.
class FloatResult {
 public:
  explicit FloatResult(const at::Tensor& result)
      : result_(result),
        memory_(result.scalar_type() == at::kFloat
                    ? result
                    : at::empty(result.sizes(), result.options().dtype(at::kFloat))) {}

  float* data() const { return memory_.mutable_data_ptr<float>(); }
  void finish() const {
    if (!memory_.is_same(result_)) result_.copy_(memory_);
  }

 private:
  at::Tensor result_, memory_;
};

// The gradient of a parameter: its sums over blocks of rows, added in the order of the blocks. A
// block's sums lie `stride` floats behind the one before.
inline void write_parameter_gradient(const float* sums, int64_t num_blocks, int64_t stride,
                                     const at::Tensor& gradient) {
  const FloatResult total(gradient);
  const int64_t width = gradient.size(0);
  float* to = total.data();
  std::fill_n(to, width, 0.0f);
  for (int64_t block = 0; block < num_blocks; ++block, sums += stride) {
    for (int64_t j = 0; j < width; ++j) to[j] += sums[j];
  }
  total.finish();
}

// Element (n, j) of the rows has the logical index offsets[n] + j.
struct DropoutRows {
  const int64_t* offsets;
  PhiloxStream stream;
  uint32_t threshold;
  float scale;
  bool drops;  // false for p = 0
};

// All but the values of rng and offsets is checked before; `offsets` is a contiguous form of
// dropout's and outlives the result.
inline DropoutRows dropout_rows(const char* op, const DropoutArguments& dropout,
                                const at::Tensor& offsets, int64_t width) {
  const PhiloxStream stream = philox_stream(op, dropout.rng, dropout.site);
  const int64_t* data = offsets.const_data_ptr<int64_t>();
  int64_t smallest = 0, largest = 0;
  for (int64_t n = 0; n < offsets.size(0); ++n) {
    smallest = std::min(smallest, data[n]);
    largest = std::max(largest, data[n]);
  }
  TORCH_CHECK_VALUE(smallest >= 0, "sbrrt::", op, ": offsets must not be negative, got ",
                    smallest);
  TORCH_CHECK_VALUE(largest <= std::numeric_limits<int64_t>::max() - width, "sbrrt::", op,
                    ": offsets + width must be below 2^63, got offset ", largest, " and width ",
                    width);
  return {data, stream, dropout_threshold(dropout.p), static_cast<float>(dropout_scale(dropout.p)),
          dropout.p > 0};
}

}  // namespace sbrrt
