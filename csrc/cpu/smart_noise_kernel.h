// Standard normal numbers from Philox words by Box and Muller. Included once per instruction set.
#include "cpu/vec.h"

#include "cpu/dropout_words.h"

namespace sbrrt::SBRRT_ISA {

inline void noise_square_root(double* x, int count) {
#if defined(SBRRT_LANES_AVX512)
  for (int i = 0; i < count; i += 8) {
    _mm512_storeu_pd(x + i, _mm512_maskz_sqrt_pd(0xFF, _mm512_loadu_pd(x + i)));
  }
#elif defined(SBRRT_LANES_AVX2)
  for (int i = 0; i < count; i += 4) {
    _mm256_storeu_pd(x + i, _mm256_sqrt_pd(_mm256_loadu_pd(x + i)));
  }
#else
  for (int i = 0; i < count; ++i) x[i] = std::sqrt(x[i]);
#endif
}

// -2 log((word + 1) / 2^32), relative error below 1e-10. With u = m 2^e, m in [sqrt 1/2, sqrt 2),
// and s = (m - 1) / (m + 1): log m = 2 artanh s.
inline double noise_squared_radius(uint32_t word) {
  constexpr uint64_t kRootHalf = 0x3FE6A09E667F3BCDu, kBias = 64, kTwoTo52 = 0x4330000000000000u;
  const double u = (static_cast<double>(static_cast<int32_t>(word ^ 0x80000000u)) + 2147483649.0) *
                   0x1p-32;
  const auto bits = std::bit_cast<uint64_t>(u);
  const uint64_t biased = (bits - kRootHalf + (kBias << 52)) >> 52;
  const double e = std::bit_cast<double>(biased | kTwoTo52) - (0x1p52 + kBias);
  const double m = std::bit_cast<double>(bits - ((biased - kBias) << 52));
  const double s = (m - 1) / (m + 1), z = s * s;
  const double series =
      1 + z * (1. / 3 + z * (1. / 5 + z * (1. / 7 + z * (1. / 9 + z * (1. / 11)))));
  return -2 * (e * 0.69314718055994530942 + 2 * s * series);
}

// sin and cos of |x| <= pi / 4, relative error below 1e-9: Taylor's series.
inline double noise_sine(double x) {
  const double z = x * x;
  return x * (1 + z * (-1. / 6 + z * (1. / 120 + z * (-1. / 5040 + z * (1. / 362880 +
                                                                      z * (-1. / 39916800))))));
}
inline double noise_cosine(double x) {
  const double z = x * x;
  return 1 + z * (-1. / 2 + z * (1. / 24 + z * (-1. / 720 + z * (1. / 40320 +
                                                               z * (-1. / 3628800 +
                                                                    z * (1. / 479001600))))));
}

// Words 2 i and 2 i + 1 -> normals 2 i and 2 i + 1; kNoisePairs of them, wanted or not.
inline void noise_pairs(const uint32_t* words, float* out) {
  double radius[kNoisePairs];
  float near[kNoisePairs], far[kNoisePairs];  // radius times cosine and sine in the quadrant
  for (int i = 0; i < kNoisePairs; ++i) radius[i] = noise_squared_radius(words[2 * i]);
  noise_square_root(radius, kNoisePairs);
  for (int i = 0; i < kNoisePairs; ++i) {
    const uint32_t quadrant = (words[2 * i + 1] + 0x20000000u) & 0xC0000000u;
    const auto rest = static_cast<int32_t>(words[2 * i + 1] - quadrant);
    const double x = rest * (6.28318530717958647692 * 0x1p-32);
    near[i] = static_cast<float>(radius[i] * noise_cosine(x));
    far[i] = static_cast<float>(radius[i] * noise_sine(x));
  }
  for (int i = 0; i < kNoisePairs; ++i) {
    const uint32_t quadrant = (words[2 * i + 1] + 0x20000000u) >> 30;
    const uint32_t is_odd = 0u - (quadrant & 1);
    const auto a = std::bit_cast<uint32_t>(near[i]), b = std::bit_cast<uint32_t>(far[i]);
    const uint32_t cosine = ((a & ~is_odd) | (b & is_odd)) ^ (((quadrant + 1) & 2) << 30);
    const uint32_t sine = ((b & ~is_odd) | (a & is_odd)) ^ ((quadrant & 2) << 30);
    out[2 * i] = std::bit_cast<float>(cosine);
    out[2 * i + 1] = std::bit_cast<float>(sine);
  }
}

// Normals of elements offset ... offset + count - 1, count <= 2 * kNoisePairs and even.
inline void noise_run(int64_t offset, int64_t count, const PhiloxStream& stream, float* out) {
  alignas(64) uint32_t words[2 * kNoisePairs + 2 * kWordsPerGroup + kVecSize];
  alignas(64) float normals[2 * kNoisePairs];
  const uint32_t* run = dropout_words(offset, count, stream, words);
  noise_pairs(run, count == 2 * kNoisePairs ? out : normals);
  if (count < 2 * kNoisePairs) std::copy(normals, normals + count, out);
}

}  // namespace sbrrt::SBRRT_ISA
