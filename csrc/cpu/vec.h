// A vector of floats, its loads, stores and reductions, per instruction set. + - * / work on Vec
// directly. bfloat16 is converted at loads and stores, rounding to nearest even. A kernel
// includes this once, before the headers that build on it (vec_math.h, dropout_words.h).

namespace sbrrt::SBRRT_ISA {

#if defined(SBRRT_LANES_AVX512)

constexpr int kVecSize = 16;
using Vec = __m512;

inline Vec vec_set(float x) { return _mm512_set1_ps(x); }
inline Vec vec_load(const float* p) { return _mm512_loadu_ps(p); }
inline void vec_store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
inline Vec vec_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec vec_abs(Vec x) { return _mm512_abs_ps(x); }
inline Vec vec_sqrt(Vec x) { return _mm512_sqrt_ps(x); }
inline Vec vec_round(Vec x) { return _mm512_roundscale_ps(x, 0); }  // to the nearest integer

// 1 / x within 1 ulp for 2^-126 <= x <= 2^126: an estimate of 14 bits and one step of Newton's.
inline Vec vec_reciprocal(Vec x) {
  const Vec y = _mm512_rcp14_ps(x);
  return vec_fma(y, _mm512_fnmadd_ps(x, y, vec_set(1.0f)), y);
}

// x where a < b, else y
inline Vec vec_where_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

// x 2^n for a whole number n in [-126, 127]
inline Vec vec_scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

// The first `count` lanes of x, then zeros; 0 <= count <= kVecSize.
inline Vec vec_head(Vec x, int64_t count) {
  return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), x);
}

// x where words[lane] >= threshold, else 0
inline Vec vec_keep(const uint32_t* words, uint32_t threshold, Vec x) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
  return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(_mm512_loadu_si512(words), limit), x);
}

inline Vec vec_load(const at::BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

#if defined(SBRRT_LANES_AVX512_BF16)
inline void vec_store(at::BFloat16* p, Vec x) {  // denormals become zero
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}
#else
inline void vec_store(at::BFloat16* p, Vec x) {
  alignas(64) static constexpr uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15,
                                                            17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  __m512i round = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  round = _mm512_mask_add_epi32(round, is_odd, round, _mm512_set1_epi32(1));
  round = _mm512_mask_mov_epi32(round, is_nan, _mm512_set1_epi32(0x7fc00000));
  const __m512i halves =
      _mm512_maskz_permutexvar_epi16(0xFFFF, _mm512_load_si512(kUpperHalves), round);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(halves));
}
#endif

// maskz: GCC 12 warns of an uninitialised value in its own unmasked intrinsics.
inline __m256 vec_lower(Vec x) { return _mm512_maskz_extractf32x8_ps(0xFF, x, 0); }
inline __m256 vec_upper(Vec x) { return _mm512_maskz_extractf32x8_ps(0xFF, x, 1); }

#elif defined(SBRRT_LANES_AVX2)

constexpr int kVecSize = 8;
using Vec = __m256;

inline Vec vec_set(float x) { return _mm256_set1_ps(x); }
inline Vec vec_load(const float* p) { return _mm256_loadu_ps(p); }
inline void vec_store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec vec_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec vec_abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Vec vec_sqrt(Vec x) { return _mm256_sqrt_ps(x); }
inline Vec vec_round(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec vec_reciprocal(Vec x) { return vec_set(1.0f) / x; }

inline Vec vec_where_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

inline Vec vec_scale_by_power(Vec x, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

inline Vec vec_head(Vec x, int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  return _mm256_and_ps(x, _mm256_castsi256_ps(inside));
}

inline Vec vec_keep(const uint32_t* words, uint32_t threshold, Vec x) {
  const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i limit = _mm256_set1_epi32(static_cast<int>(threshold));
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(word, limit), word);
  return _mm256_and_ps(x, _mm256_castsi256_ps(kept));
}

inline Vec vec_load(const at::BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline void vec_store(at::BFloat16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i round = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  round = _mm256_blendv_epi8(round, _mm256_set1_epi32(0x7fc00000), is_nan);
  round = _mm256_srli_epi32(round, 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(round),
                                    _mm256_extracti128_si256(round, 1)));
}

#else

constexpr int kVecSize = 1;
using Vec = float;

inline Vec vec_set(float x) { return x; }
inline Vec vec_load(const float* p) { return *p; }
inline void vec_store(float* p, Vec x) { *p = x; }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec vec_min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec vec_max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec vec_abs(Vec x) { return std::fabs(x); }
inline Vec vec_sqrt(Vec x) { return std::sqrt(x); }
inline Vec vec_round(Vec x) { return std::nearbyint(x); }
inline Vec vec_reciprocal(Vec x) { return 1.0f / x; }
inline Vec vec_where_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
inline Vec vec_scale_by_power(Vec x, Vec n) { return std::ldexp(x, static_cast<int>(n)); }
inline Vec vec_head(Vec x, int64_t count) { return count > 0 ? x : 0.0f; }
inline Vec vec_keep(const uint32_t* words, uint32_t threshold, Vec x) {
  return *words >= threshold ? x : 0.0f;
}
inline Vec vec_load(const at::BFloat16* p) { return static_cast<float>(*p); }
inline void vec_store(at::BFloat16* p, Vec x) { *p = at::BFloat16(x); }

#endif

// x rounded to float: the compiler must not fuse a product x with an addition that follows.
inline Vec vec_rounded(Vec x) {
#if defined(SBRRT_LANES_AVX512)
  __asm__("" : "+v"(x));
#elif defined(SBRRT_LANES_AVX2)
  __asm__("" : "+x"(x));
#else
  __asm__("" : "+m"(x));
#endif
  return x;
}

// Sum and maximum of the lanes, always in the same order.
#if defined(SBRRT_LANES_AVX512) || defined(SBRRT_LANES_AVX2)

#if defined(SBRRT_LANES_AVX512)
inline __m256 vec_fold_sum(Vec x) { return vec_lower(x) + vec_upper(x); }
inline __m256 vec_fold_max(Vec x) { return _mm256_max_ps(vec_lower(x), vec_upper(x)); }
#else
inline __m256 vec_fold_sum(Vec x) { return x; }
inline __m256 vec_fold_max(Vec x) { return x; }
#endif

inline float vec_sum(Vec x) {
  const __m256 eight = vec_fold_sum(x);
  __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  four = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(four + _mm_movehdup_ps(four));
}

inline float vec_largest(Vec x) {
  const __m256 eight = vec_fold_max(x);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ps(four, _mm_movehdup_ps(four)));
}

#else

inline float vec_sum(Vec x) { return x; }
inline float vec_largest(Vec x) { return x; }

#endif

// A running sum of many Vecs. Where a Vec is one float it is a double: a float would collect the
// rounding of a whole row, sixteen times what a lane of the widest Vec collects.
#if defined(SBRRT_LANES_AVX512) || defined(SBRRT_LANES_AVX2)

using VecTotal = Vec;

inline VecTotal total_zero() { return vec_set(0.0f); }
inline VecTotal total_add(VecTotal total, Vec x) { return total + x; }
inline VecTotal total_fma(VecTotal total, Vec a, Vec b) { return vec_fma(a, b, total); }
inline float total_sum(VecTotal total) { return vec_sum(total); }

#else

using VecTotal = double;

inline VecTotal total_zero() { return 0.0; }
inline VecTotal total_add(VecTotal total, Vec x) { return total + x; }
inline VecTotal total_fma(VecTotal total, Vec a, Vec b) {
  return total + static_cast<double>(a) * static_cast<double>(b);
}
inline float total_sum(VecTotal total) { return static_cast<float>(total); }

#endif

// Fetches a Vec's place that is soon stored to, so that the store need not wait for memory.
template <typename T>
inline void vec_prefetch(const T* p) {
  if constexpr (kVecSize > 1) __builtin_prefetch(p);
}

// The first `count` elements at p, then zeros; nothing behind them is read.
template <typename T>
inline Vec vec_load_head(const T* p, int64_t count) {
  T buffer[kVecSize] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return vec_load(buffer);
}

// Stores the first `count` lanes; nothing behind them is written.
template <typename T>
inline void vec_store_head(T* p, Vec x, int64_t count) {
  T buffer[kVecSize];
  vec_store(buffer, x);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

}  // namespace sbrrt::SBRRT_ISA
