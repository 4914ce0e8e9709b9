// What happens to scores between attention's products. Included once per instruction set.
//
// Scores lie as [key][query]: a vector holds the same key of kVecSize queries, so that maximum and
// sums over keys are plain vector operations, and no key is padding. A last vector's missing
// queries are zeros with finite results that nobody reads.
#include "cpu/attention_matrix.h"
#include "cpu/philox_words.h"

namespace sbrrt::SBRRT_ISA {

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

// 2^x within 1.5 ulp for -126 <= x <= 127, below it 0 (a denormal would be slow); NaN stays. With n
// the nearest whole number, 2^x = 2^n 2^(x - n); the polynomial is a fit of 2^r on [-1/2, 1/2],
// relative error 2e-9.
inline Vec power_of_two(Vec x) {
  const Vec smallest = vec_set(-126.f);
  const Vec inside = vec_max(smallest, x);  // of a NaN: the second, x
  const Vec n = vec_round(inside), r = inside - n;
  Vec y = vec_set(1.5353362e-4f);
  y = vec_fma(y, r, vec_set(1.3398875e-3f));
  y = vec_fma(y, r, vec_set(9.6184369e-3f));
  y = vec_fma(y, r, vec_set(5.5503324e-2f));
  y = vec_fma(y, r, vec_set(0.24022648f));
  y = vec_fma(y, r, vec_set(0.69314718f));
  y = vec_scale_by_power(vec_fma(y, r, vec_set(1.f)), n);
  return vec_where_less(x, smallest, vec_set(0.f), y);
}

// x = 2^n m, 3/4 <= m < 3/2, for normal positive x
#if defined(SBRRT_LANES_AVX512)
inline Vec split_power(Vec x, Vec& m) {
  constexpr __mmask16 kAll = 0xFFFF;  // GCC 12 warns of the unmasked intrinsics
  m = _mm512_maskz_getmant_ps(kAll, x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  const Vec n = _mm512_maskz_getexp_ps(kAll, x);
  return n + vec_where_less(m, vec_set(1.f), vec_set(1.f), vec_set(0.f));
}
#elif defined(SBRRT_LANES_AVX2)
inline Vec split_power(Vec x, Vec& m) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i above = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f400000));  // of 3/4
  const __m256i n = _mm256_srai_epi32(above, 23);
  m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
  return _mm256_cvtepi32_ps(n);
}
#else
inline Vec split_power(Vec x, Vec& m) {
  int n;
  m = 2 * std::frexp(x, &n);
  if (m < 1.5f) return static_cast<float>(n - 1);
  m /= 2;
  return static_cast<float>(n);
}
#endif

// log x for normal positive x, within 2 ulp of it or of 1; NaN stays. log m = 2 artanh s with
// s = (m - 1) / (m + 1), |s| <= 1/5: the series' first six terms, relative error 4e-10.
inline Vec logarithm(Vec x) {
  Vec m;
  const Vec n = split_power(x, m), one = vec_set(1.f);
  const Vec s = (m - one) / (m + one), z = s * s;
  Vec y = vec_set(1.f / 11);
  y = vec_fma(y, z, vec_set(1.f / 9));
  y = vec_fma(y, z, vec_set(1.f / 7));
  y = vec_fma(y, z, vec_set(1.f / 5));
  y = vec_fma(y, z, vec_set(1.f / 3));
  y = vec_fma(y * z, s, s);
  return vec_fma(n, vec_set(kLn2), y + y) + (x - x);
}

// The random words of a block's probabilities: those of keys 4 b + c lie at words + c plane, as
// [b][query].
struct DropoutWords {
  const uint32_t* words = nullptr;
  int plane = 0, num_queries = 0;
  uint32_t threshold = 0;  // words below it are dropped

  const uint32_t* of(int key, int query) const {
    return words + (key % 4) * plane + (key / 4) * num_queries + query;
  }
};

// Queries whose first element is not a block's first: planes by word -> planes by key.
inline void shift_words(const uint32_t* words, int plane, uint64_t element, uint64_t step,
                        int num_queries, int num_keys, uint32_t* shifted) {
  for (int j = 0; j < num_keys; ++j) {
    for (int i = 0; i < num_queries; ++i) {
      const int word = static_cast<int>((element + i * step) % 4) + j;
      shifted[(j % 4) * plane + (j / 4) * num_queries + i] =
          words[(word % 4) * plane + (word / 4) * num_queries + i];
    }
  }
}

// element is dropout's index of the first query's key 0, step from query to query.
inline DropoutWords draw_words(const AttentionDropout& dropout, uint64_t element, uint64_t step,
                               int num_queries, int num_keys, AttentionScratch& scratch) {
  const bool whole = step % 4 == 0 && element % 4 == 0;  // every query begins a block
  const int num_blocks = (num_keys + (whole ? 3 : 6)) / 4;
  const int plane = round_up(num_queries * num_blocks, kPhiloxGroup);
  uint64_t* blocks = scratch.blocks.of(plane);
  for (int i = 0; i < num_queries; ++i) blocks[i] = (element + i * step) / 4;
  for (int i = num_queries; i < num_queries * num_blocks; ++i) {
    blocks[i] = blocks[i - num_queries] + 1;
  }
  std::fill(blocks + num_queries * num_blocks, blocks + plane, 0);
  const int capacity = 4 * plane + kVecSize;  // a last vector is read past its queries
  uint32_t* words = scratch.words.of(capacity);
  philox_planes(blocks, plane, dropout.stream, words);
  if (!whole) {
    uint32_t* shifted = scratch.shifted_words.of(capacity);
    shift_words(words, plane, element, step, num_queries, num_keys, shifted);
    words = shifted;
  }
  return {words, plane, num_queries, dropout.threshold};
}

// A block's vector of queries: scores [key], `stride` apart, and which of them are dropped.
struct Queries {
  int first, num_keys;
  int64_t stride;
  const DropoutWords& dropout;

  template <bool kDropout>
  Vec kept(Vec x, int key) const {
    if constexpr (kDropout) return vec_keep(dropout.of(key, first), dropout.threshold, x);
    return x;
  }
};

// A sum over keys, in runs of 16 that are summed in turn.
class Total {
 public:
  Total() : total_(vec_set(0.f)), run_(vec_set(0.f)) {}
  void add(Vec x) { finish(run_ + x); }
  void add_product(Vec a, Vec b) { finish(vec_fma(a, b, run_)); }
  Vec value() const { return total_ + run_; }

 private:
  void finish(Vec run) {
    run_ = run;
    if (++count_ % 16 != 0) return;
    total_ = total_ + run_;
    run_ = vec_set(0.f);
  }

  Vec total_, run_;
  int count_ = 0;
};

// scores -> M P scale, M being zero where dropped; returns logsumexp.
template <bool kDropout>
Vec softmax(float* scores, float score_scale, float scale, const Queries& queries) {
  Vec top = vec_load(scores);
  for (int j = 1; j < queries.num_keys; ++j) {
    top = vec_max(top, vec_load(scores + j * queries.stride));
  }
  const Vec factor = vec_set(score_scale * kLog2E), shift = top * factor;
  const Vec below = vec_set(0.f) - shift;
  Total total;
  for (int j = 0; j < queries.num_keys; ++j) {
    float* score = scores + j * queries.stride;
    const Vec x = power_of_two(vec_fma(vec_load(score), factor, below));
    total.add(x);
    vec_store(score, queries.kept<kDropout>(x, j));
  }
  const Vec sum = total.value(), share = vec_set(scale) / sum;
  for (int j = 0; j < queries.num_keys; ++j) {
    float* score = scores + j * queries.stride;
    vec_store(score, vec_load(score) * share);
  }
  return vec_fma(shift, vec_set(kLn2), logarithm(sum));
}

// How probabilities come from scores: 2^(scale score - shift), but for a factor that makes their
// sum 1, for the shift, from logsumexp, is rounded.
struct Exponent {
  Vec scale, below;

  Exponent(float score_scale, const float* logsumexp)
      : scale(vec_set(score_scale * kLog2E)), below(vec_load(logsumexp) * vec_set(-kLog2E)) {}
  Vec operator()(const float* score) const {
    return power_of_two(vec_fma(vec_load(score), scale, below));
  }
};

// How probabilities P become what the products need.
struct Scales {
  float score, kept;  // sigma = 1 / sqrt(head_dim), of scores; 1 / (1 - p), of what is kept
};

// scores -> M P kept, their gradients G = dO V^T -> P (M G - D) kept sigma with D the sum over keys
// of P M G, relative to the first key's M G: with one key the gradient is zero, no rounding error.
template <bool kDropout>
void differentiate(float* scores, float* grads, const float* logsumexp, const Scales& scales,
                   const Queries& queries) {
  const Exponent exponent(scales.score, logsumexp);
  const Vec first = queries.kept<kDropout>(vec_load(grads), 0);
  Total sum, weighted;
  for (int j = 0; j < queries.num_keys; ++j) {
    float *score = scores + j * queries.stride, *grad = grads + j * queries.stride;
    const Vec p = exponent(score), g = queries.kept<kDropout>(vec_load(grad), j);
    sum.add(p);
    weighted.add_product(p, g - first);
    vec_store(score, p);
    vec_store(grad, g);
  }
  const Vec share = vec_set(1.f) / sum.value(), mean = vec_fma(weighted.value(), share, first);
  const Vec kept = share * vec_set(scales.kept), sigma = vec_set(scales.score);
  for (int j = 0; j < queries.num_keys; ++j) {
    float *score = scores + j * queries.stride, *grad = grads + j * queries.stride;
    const Vec p = vec_load(score) * kept;
    vec_store(grad, p * (vec_load(grad) - mean) * sigma);
    vec_store(score, queries.kept<kDropout>(p, j));
  }
}

// scores -> M P kept, their tangents T -> M P (T - sum over keys of P T) kept sigma
template <bool kDropout>
void push(float* scores, float* tangents, const float* logsumexp, const Scales& scales,
          const Queries& queries) {
  const Exponent exponent(scales.score, logsumexp);
  const Vec first = vec_load(tangents);
  Total sum, weighted;
  for (int j = 0; j < queries.num_keys; ++j) {
    float* score = scores + j * queries.stride;
    const Vec p = exponent(score);
    sum.add(p);
    weighted.add_product(p, vec_load(tangents + j * queries.stride) - first);
    vec_store(score, p);
  }
  const Vec share = vec_set(1.f) / sum.value(), mean = vec_fma(weighted.value(), share, first);
  const Vec kept = share * vec_set(scales.kept), sigma = vec_set(scales.score);
  for (int j = 0; j < queries.num_keys; ++j) {
    float *score = scores + j * queries.stride, *tangent = tangents + j * queries.stride;
    const Vec p = queries.kept<kDropout>(vec_load(score) * kept, j);
    vec_store(tangent, p * (vec_load(tangent) - mean) * sigma);
    vec_store(score, p);
  }
}

}  // namespace sbrrt::SBRRT_ISA
