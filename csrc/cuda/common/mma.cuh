// Tensor cores: matrix fragments out of shared memory, and D = A B + C on them.
//
// The fragments of m16n8k16, lane = 4 * group + t (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A (16 x 16): a[0] rows group, columns 2t, 2t + 1; a[1] rows group + 8; a[2], a[3] columns + 8
//   B (16 x 8):  b[0] rows 2t, 2t + 1, column group; b[1] rows + 8
//   C (16 x 8):  c[0], c[1] row group, columns 2t, 2t + 1; c[2], c[3] row group + 8
// ldmatrix_x4 takes four 8 x 8 matrices: lane 8 m + i gives the address of row i of matrix m (16
// bytes, aligned), and r[m] is its fragment: row lane / 4, columns 2 (lane % 4) and + 1; with _trans
// of the transposed matrix.
#pragma once

#include "cuda/common/convert.cuh"

#if defined(SBRRT_CUDA_ON_CPU)
#include <cuda_on_cpu/mma.h>
#else

namespace sbrrt::cuda {

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += A B, accumulated in fp32. T is __half or __nv_bfloat16.
template <typename T>
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (__is_same(T, __half)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(__is_same(T, __nv_bfloat16));
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace sbrrt::cuda
#endif
