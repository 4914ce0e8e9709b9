// Rows whose elements lie side by side, which kernels ask for.
#pragma once

#include <ATen/core/Tensor.h>

namespace sbrrt {

// A tensor whose rows are dense: itself, or a copy.
inline at::Tensor with_dense_rows(const at::Tensor& tensor) {
  return tensor.stride(1) == 1 || tensor.size(1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace sbrrt
