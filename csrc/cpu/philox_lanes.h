// A vector of 64-bit lanes, each holding one 32-bit word of Philox in its low half; the high half
// is never read, so a widening multiplication needs no mask. Included once per instruction set.

namespace sbrrt::SBRRT_ISA {

#if defined(SBRRT_LANES_AVX512)

constexpr int kNumLanes = 8;
using Lanes = __m512i;

inline Lanes load(const uint64_t* p) { return _mm512_loadu_si512(p); }
inline Lanes broadcast(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
inline Lanes multiply_low(Lanes a, Lanes b) { return _mm512_mul_epu32(a, b); }
inline Lanes high_half(Lanes a) { return _mm512_srli_epi64(a, 32); }
inline Lanes xor3(Lanes a, Lanes b, Lanes c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

// Low half of a below the low half of b.
inline Lanes join(Lanes a, Lanes b) {
  return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA);
}

// out[2 * lane] = low[lane], out[2 * lane + 1] = high[lane]
inline void store_interleaved(uint32_t* out, Lanes low, Lanes high) {
  const Lanes first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const Lanes second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi64(low, second, high));
}

// out[lane] = the low half of a[lane]
inline void store_low_halves(uint32_t* out, Lanes a) {
  const Lanes even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm512_castsi512_si256(_mm512_maskz_permutexvar_epi32(0xFF, even, a)));
}

#elif defined(SBRRT_LANES_AVX2)

constexpr int kNumLanes = 4;
using Lanes = __m256i;

inline Lanes load(const uint64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Lanes broadcast(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
inline Lanes multiply_low(Lanes a, Lanes b) { return _mm256_mul_epu32(a, b); }
inline Lanes high_half(Lanes a) { return _mm256_srli_epi64(a, 32); }
inline Lanes xor3(Lanes a, Lanes b, Lanes c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}

inline Lanes join(Lanes a, Lanes b) {
  return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
}

inline void store_interleaved(uint32_t* out, Lanes low, Lanes high) {
  const Lanes even = _mm256_unpacklo_epi64(low, high);
  const Lanes odd = _mm256_unpackhi_epi64(low, high);
  auto* p = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(p, _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256(p + 1, _mm256_permute2x128_si256(even, odd, 0x31));
}

inline void store_low_halves(uint32_t* out, Lanes a) {
  const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(a, even)));
}

#else

constexpr int kNumLanes = 1;
using Lanes = uint64_t;

inline Lanes load(const uint64_t* p) { return *p; }
inline Lanes broadcast(uint64_t x) { return x; }
inline Lanes multiply_low(Lanes a, Lanes b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) * static_cast<uint32_t>(b);
}
inline Lanes high_half(Lanes a) { return a >> 32; }
inline Lanes xor3(Lanes a, Lanes b, Lanes c) { return a ^ b ^ c; }
inline Lanes join(Lanes a, Lanes b) { return static_cast<uint32_t>(a) | (b << 32); }

inline void store_interleaved(uint32_t* out, Lanes low, Lanes high) {
  out[0] = static_cast<uint32_t>(low);
  out[1] = static_cast<uint32_t>(low >> 32);
  out[2] = static_cast<uint32_t>(high);
  out[3] = static_cast<uint32_t>(high >> 32);
}

inline void store_low_halves(uint32_t* out, Lanes a) { *out = static_cast<uint32_t>(a); }

#endif

}  // namespace sbrrt::SBRRT_ISA
