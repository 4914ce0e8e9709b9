// The instruction sets a CPU kernel is compiled for, and the one this processor takes.
#pragma once

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SBRRT_X86 1
#include <immintrin.h>
#if __has_include(<avx512bf16intrin.h>)  // of g++ >= 10 and clang >= 9
#define SBRRT_AVX512_BF16 1
#endif
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

// For a few instructions between a row's passes, where a call would pass Vecs through memory.
#define SBRRT_INLINE inline __attribute__((always_inline))

namespace sbrrt {

// In rising order: each has those before it.
enum class Isa { plain, avx2, avx512, avx512_bf16 };

inline const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "AVX-512-bf16";
    case Isa::avx512: return "AVX-512";
    case Isa::avx2: return "AVX2";
    default: return "plain";
  }
}

// The most that this processor has within torch's own choice, so that
// ATEN_CPU_CAPABILITY=default|avx2|avx512 governs both.
inline Isa available_isa() {
#if defined(SBRRT_X86)
  const std::string capability = at::get_cpu_capability();
#if defined(SBRRT_AVX512_BF16)
  if (capability == "AVX512" && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
#endif
  if (capability == "AVX512") return Isa::avx512;
  if (capability == "AVX2") return Isa::avx2;
#endif
  return Isa::plain;
}

// SBRRT_CPU_ISA=plain|avx2|avx512|avx512_bf16 asks for less.
inline Isa requested_isa() {
  const Isa available = available_isa();
  const char* variable = std::getenv("SBRRT_CPU_ISA");
  if (variable == nullptr || *variable == '\0') return available;
  const std::string name = variable;
  const Isa isa = name == "avx512_bf16" ? Isa::avx512_bf16
                  : name == "avx512"    ? Isa::avx512
                  : name == "avx2"      ? Isa::avx2
                                        : Isa::plain;
  TORCH_CHECK_VALUE(isa != Isa::plain || name == "plain",
                    "SBRRT_CPU_ISA must be plain, avx2, avx512 or avx512_bf16, got ", name);
  TORCH_CHECK_VALUE(isa <= available, "SBRRT_CPU_ISA=", name, " is more than this processor and",
                    " ATEN_CPU_CAPABILITY allow: ", isa_name(available));
  return isa;
}

// The instruction set to run, for a kernel that is compiled up to `most`. The environment is read
// once.
inline Isa cpu_isa(Isa most = Isa::avx512) {
  static const Isa isa = requested_isa();
  return std::min(isa, most);
}

}  // namespace sbrrt

// Calls `function` of the instruction set that this processor takes, in a function's last line.
#if defined(SBRRT_X86)
#define SBRRT_RETURN_ON_THIS_CPU(function, ...)             \
  switch (cpu_isa()) {                                      \
    case Isa::avx512: return avx512::function(__VA_ARGS__); \
    case Isa::avx2: return avx2::function(__VA_ARGS__);     \
    default: return plain::function(__VA_ARGS__);           \
  }
#else
#define SBRRT_RETURN_ON_THIS_CPU(function, ...) return plain::function(__VA_ARGS__);
#endif

// The same for a kernel that is compiled up to AVX-512 with bfloat16 instructions.
#if defined(SBRRT_X86) && defined(SBRRT_AVX512_BF16)
#define SBRRT_RETURN_UP_TO_BF16(function, ...)         \
  if (cpu_isa(Isa::avx512_bf16) == Isa::avx512_bf16) { \
    return avx512_bf16::function(__VA_ARGS__);         \
  }                                                    \
  SBRRT_RETURN_ON_THIS_CPU(function, __VA_ARGS__)
#else
#define SBRRT_RETURN_UP_TO_BF16(function, ...) SBRRT_RETURN_ON_THIS_CPU(function, __VA_ARGS__)
#endif
