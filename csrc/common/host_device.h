#pragma once

// Marks a function that host and device code share, and one that a kernel runs where there is a
// device: it may call what is for the device alone.
#if defined(__CUDACC__)
#define SBRRT_HOST_DEVICE __host__ __device__
#define SBRRT_KERNEL_CODE __device__
#else
#define SBRRT_HOST_DEVICE
#define SBRRT_KERNEL_CODE
#endif
