// What moves a Vec: one access of that many bytes, whose alignment is checked.
#pragma once

#include <cuda_on_cpu/memory.h>

namespace sbrrt::cuda::detail {

template <int BYTES>
inline void copy(void* to, const void* from) {
  constexpr int kStep = BYTES < 16 ? BYTES : 16;
  static_assert((kStep & (kStep - 1)) == 0, "a vector has 2, 4, 8 or a multiple of 16 bytes");
  for (int at = 0; at < BYTES; at += kStep) {
    ::cuda_on_cpu::copy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, kStep);
  }
}

}  // namespace sbrrt::cuda::detail
