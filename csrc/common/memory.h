// Whether two tensors have memory in common: exactly, for any strides. at::get_overlap_status knows
// dense tensors of one storage alone, and the parts of a [T, 3H] are not dense.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace sbrrt {

// Addresses from a tensor's first element to behind its last. A tensor without memory (tracing) has
// offsets in its storage, `space`. Empty for one without elements or of unknown size.
struct Extent {
  const void* space;
  uintptr_t begin, end;

  bool operator==(const Extent&) const = default;
  bool meets(const Extent& other) const {
    return space == other.space && begin < other.end && other.begin < end;
  }
};

inline Extent extent_of(const at::Tensor& tensor) {
  if (tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides() || tensor.numel() == 0) {
    return {nullptr, 0, 0};
  }
  const auto item_size = static_cast<int64_t>(tensor.element_size());
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const bool is_real = !tensor.is_meta();
  const void* space = is_real ? nullptr : tensor.storage().unsafeGetStorageImpl();
  const uintptr_t begin = is_real ? reinterpret_cast<uintptr_t>(tensor.const_data_ptr())
                                  : tensor.storage_offset() * item_size;
  return {space, begin, begin + (last + 1) * item_size};
}

// A tensor's memory as runs of `size` bytes without a gap. The first begins at `begin`, the others
// at every sum of multiples of the strides.
struct Runs {
  struct Dimension {
    int64_t stride, count;  // stride in bytes
    bool operator<(const Dimension& other) const { return stride < other.stride; }
  };
  uintptr_t begin;
  int64_t size;
  c10::SmallVector<Dimension, 4> dimensions;
};

inline Runs runs_of(const at::Tensor& tensor, uintptr_t begin) {
  const auto item_size = static_cast<int64_t>(tensor.element_size());
  c10::SmallVector<Runs::Dimension, 4> all;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const bool moves = tensor.size(d) > 1 && tensor.stride(d) != 0;
    if (moves) all.push_back({tensor.stride(d) * item_size, tensor.size(d)});
  }
  std::sort(all.begin(), all.end());
  Runs runs{begin, item_size, {}};
  for (const Runs::Dimension& dimension : all) {
    if (runs.dimensions.empty() && dimension.stride == runs.size) {
      runs.size *= dimension.count;
    } else {
      runs.dimensions.push_back(dimension);
    }
  }
  return runs;
}

// Rows that are equally far apart, in columns of their own.
inline bool are_columns_apart(const Runs& a, const Runs& b) {
  if (a.dimensions.size() != 1 || b.dimensions.size() != 1) return false;
  const int64_t stride = a.dimensions[0].stride;
  if (b.dimensions[0].stride != stride) return false;
  const auto difference = static_cast<int64_t>(b.begin - a.begin);
  const int64_t column = (difference % stride + stride) % stride;
  return column >= a.size && column + b.size <= stride;
}

inline std::vector<uintptr_t> starts_of(const Runs& runs) {
  std::vector<uintptr_t> starts{runs.begin};
  for (const Runs::Dimension& dimension : runs.dimensions) {
    const size_t num_inner = starts.size();
    for (int64_t k = 1; k < dimension.count; ++k) {
      for (size_t i = 0; i < num_inner; ++i) starts.push_back(starts[i] + k * dimension.stride);
    }
  }
  std::sort(starts.begin(), starts.end());
  return starts;
}

// For tensors whose extents meet.
inline bool have_common_memory(const Runs& a, const Runs& b) {
  if (are_columns_apart(a, b)) return false;
  const std::vector<uintptr_t> of_a = starts_of(a), of_b = starts_of(b);
  for (size_t i = 0, j = 0; i < of_a.size() && j < of_b.size();) {
    const uintptr_t end_a = of_a[i] + a.size, end_b = of_b[j] + b.size;
    if (of_a[i] < end_b && of_b[j] < end_a) return true;
    end_a <= end_b ? ++i : ++j;
  }
  return false;
}

// Whether element i of one is element i of the other, for all i.
inline bool is_same_memory(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  if (extent_of(a) != extent_of(b)) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Whether any of the first num_written extents meets another one. The same extents are asked for
// at every step of an optimiser, so the last ones that did not are remembered.
inline bool any_written_meets(c10::ArrayRef<Extent> extents, size_t num_written) {
  static thread_local std::vector<Extent> apart;
  static thread_local size_t num_written_apart = 0;
  if (num_written == num_written_apart && extents == c10::ArrayRef<Extent>(apart)) return false;
  struct Range {
    Extent extent;
    bool is_written;
  };
  std::vector<Range> ranges;
  for (size_t i = 0; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i].end) ranges.push_back({extents[i], i < num_written});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.extent.space, a.extent.begin) < std::pair(b.extent.space, b.extent.begin);
  });
  Extent written{}, any{};  // those that reach furthest so far
  for (const Range& range : ranges) {
    if (range.extent.meets(range.is_written ? any : written)) return true;
    if (range.extent.space != any.space) written = any = {range.extent.space, 0, 0};
    any.end = std::max(any.end, range.extent.end);
    if (range.is_written) written.end = std::max(written.end, range.extent.end);
  }
  apart = extents.vec();
  num_written_apart = num_written;
  return false;
}

}  // namespace sbrrt
