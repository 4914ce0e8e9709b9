// Compiles the file named by SBRRT_KERNEL once per instruction set, each time in a namespace of
// that name, and so without compiler flags that would tie the whole library to one processor.
// Every standard header must have been included before: code of theirs that is first seen here
// would be compiled for the wrong processor. Hence no include guard.
//
// SBRRT_KERNEL_UP_TO_BF16 asks for the fourth, AVX-512 with bfloat16 instructions; the file then
// calls its functions by SBRRT_RETURN_UP_TO_BF16.
#include "cpu/isa.h"

#define SBRRT_ISA plain
#include SBRRT_KERNEL
#undef SBRRT_ISA

#if defined(SBRRT_X86)

#define SBRRT_ISA avx2
#define SBRRT_LANES_AVX2
SBRRT_BEGIN_TARGET("avx2,fma,f16c")
#include SBRRT_KERNEL
SBRRT_END_TARGET
#undef SBRRT_LANES_AVX2
#undef SBRRT_ISA

#define SBRRT_ISA avx512
#define SBRRT_LANES_AVX512
SBRRT_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include SBRRT_KERNEL
SBRRT_END_TARGET
#undef SBRRT_LANES_AVX512
#undef SBRRT_ISA

#if defined(SBRRT_AVX512_BF16) && defined(SBRRT_KERNEL_UP_TO_BF16)
#define SBRRT_ISA avx512_bf16
#define SBRRT_LANES_AVX512
#define SBRRT_LANES_AVX512_BF16
SBRRT_BEGIN_TARGET("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include SBRRT_KERNEL
SBRRT_END_TARGET
#undef SBRRT_LANES_AVX512_BF16
#undef SBRRT_LANES_AVX512
#undef SBRRT_ISA
#endif

#endif
#undef SBRRT_KERNEL_UP_TO_BF16
#undef SBRRT_KERNEL
