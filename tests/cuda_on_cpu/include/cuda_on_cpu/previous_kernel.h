// The wait for the kernel before in the stream. Here it has always ended; what is checked is that every
// thread of a kernel waits, and before it touches global memory.
#pragma once

namespace cuda_on_cpu {

void await_previous_kernel();

}  // namespace cuda_on_cpu

namespace sbrrt::cuda {

inline void await_previous_kernel() { ::cuda_on_cpu::await_previous_kernel(); }

}  // namespace sbrrt::cuda
