// The element types of tensors that kernels read and write.
#pragma once

namespace sbrrt::cuda {

enum class ElementType { kFloat, kHalf, kBFloat16 };

}  // namespace sbrrt::cuda
