#pragma once

// Marks a function that host and device code share.
#if defined(__CUDACC__)
#define SBRRT_HOST_DEVICE __host__ __device__
#else
#define SBRRT_HOST_DEVICE
#endif
