// Lists of tensors that an op writes in place.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

namespace sbrrt {

using WrittenLists = std::initializer_list<std::pair<const char*, at::TensorList>>;

// Two written tensors that share memory would race.
inline void check_no_overlap(const char* op, const WrittenLists& written) {
  std::vector<std::pair<const char*, const char*>> spans;
  for (const auto& [name, tensors] : written) {
    for (const at::Tensor& tensor : tensors) {
      const auto* start = static_cast<const char*>(tensor.const_data_ptr());
      if (tensor.numel() > 0) spans.emplace_back(start, start + tensor.nbytes());
    }
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    TORCH_CHECK_VALUE(spans[i - 1].second <= spans[i].first,
                      "sbrrt::", op, ": two of the tensors to be written share memory; name "
                      "every parameter, moment, average and copy once");
  }
}

// Saved tensors of a graph must notice the change.
inline void count_change(const WrittenLists& written) {
  for (const auto& [name, tensors] : written) {
    for (const at::Tensor& tensor : tensors) {
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

}  // namespace sbrrt
