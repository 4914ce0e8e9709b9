// The instruction sets a CPU kernel is compiled for, and the one this processor takes.
#pragma once

#include <ATen/Version.h>

#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SBRRT_X86 1
#include <immintrin.h>
#endif

#define SBRRT_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SBRRT_BEGIN_TARGET(features) \
  SBRRT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SBRRT_END_TARGET SBRRT_PRAGMA(clang attribute pop)
#define SBRRT_UNROLL SBRRT_PRAGMA(unroll)
#else
#define SBRRT_BEGIN_TARGET(features) \
  SBRRT_PRAGMA(GCC push_options) SBRRT_PRAGMA(GCC target(features))
#define SBRRT_END_TARGET SBRRT_PRAGMA(GCC pop_options)
#define SBRRT_UNROLL SBRRT_PRAGMA(GCC unroll 16)
#endif

namespace sbrrt {

enum class Isa { plain, avx2, avx512 };

// torch's own choice, so that ATEN_CPU_CAPABILITY=default|avx2|avx512 governs both.
inline Isa cpu_isa() {
  static const Isa isa = [] {
#if defined(SBRRT_X86)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return Isa::avx512;
    if (capability == "AVX2") return Isa::avx2;
#endif
    return Isa::plain;
  }();
  return isa;
}

inline const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "AVX-512" : isa == Isa::avx2 ? "AVX2" : "plain";
}

}  // namespace sbrrt
