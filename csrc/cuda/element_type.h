// The element types of tensors that kernels read and write.
#pragma once

#include <cstdint>

namespace sbrrt::cuda {

enum class ElementType : uint8_t { kFloat, kHalf, kBFloat16 };

}  // namespace sbrrt::cuda
