// Memory as a kernel sees it.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

// One access of 2 to 16 bytes: both addresses must be multiples of its size.
void copy(void* to, const void* from, int bytes);

}  // namespace cuda_on_cpu
