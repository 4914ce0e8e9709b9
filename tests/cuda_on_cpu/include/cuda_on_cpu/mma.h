// ldmatrix and mma in the fragment layout that csrc/cuda/common/mma.cuh writes down.
#pragma once

namespace cuda_on_cpu {

void ldmatrix(uint32_t* fragment, const void* row, bool transposed, Site site);
void mma(float* c, const uint32_t* a, const uint32_t* b, bool is_bfloat16, Site site);

}  // namespace cuda_on_cpu

namespace sbrrt::cuda {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared,
                        ::cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  ::cuda_on_cpu::ldmatrix(r, shared, false, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared,
                              ::cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  ::cuda_on_cpu::ldmatrix(r, shared, true, site);
}

template <typename T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         ::cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  static_assert(__is_same(T, __half) || __is_same(T, __nv_bfloat16));
  ::cuda_on_cpu::mma(c, a, b, __is_same(T, __nv_bfloat16), site);
}

}  // namespace sbrrt::cuda
