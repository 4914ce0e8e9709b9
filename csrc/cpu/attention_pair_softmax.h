// What happens to scores between attention's products of bfloat16. Included after attention_kept.h.
//
// Scores lie as [key][query], as in attention_softmax.h; results are rounded to bfloat16, two keys
// at a time. Below an odd number of keys is a row that is no key's (PairExtent::fill_last).

namespace sbrrt::SBRRT_ISA {

// 2^x within 1 ulp and 9e-8 for x <= 127, and at least 2^-126; NaN stays.
inline Vec positive_power_of_two(Vec x) {
  const Vec inside = vec_max(vec_set(-126.f), x);  // of a NaN: the second, x
  const Vec n = vec_round(inside), r = inside - n;
  Vec y = vec_set(1.32647271e-3f);
  y = vec_fma(y, r, vec_set(9.67151264e-3f));
  y = vec_fma(y, r, vec_set(5.55073374e-2f));
  y = vec_fma(y, r, vec_set(0.240222421f));
  y = vec_fma(y, r, vec_set(0.693146978f));
  return vec_scale_by_power(vec_fma(y, r, vec_set(1.f)), n);
}

// A vector of queries of a block, and how their scores lie.
struct PairQueries {
  int vector;            // its number in the block
  int num_keys, stride;  // from key to key
  const KeptBits& kept;

  int first() const { return vector * kVecSize; }

  // x where kept, else 0
  template <bool kDropout>
  Vec load_kept(const float* x, int key) const {
    if constexpr (!kDropout) return vec_load(x);
    return _mm512_maskz_loadu_ps(kept.of(vector, key), x);
  }

  // This key's and, in the upper half, the next one's values in bfloat16; 0 where dropped.
  template <bool kDropout>
  __m512i round_two(Vec value, Vec next, int key) const {
    if constexpr (!kDropout) return (__m512i)_mm512_cvtne2ps_pbh(next, value);
    return (__m512i)_mm512_maskz_cvtne2ps_pbh(kept.of_two(vector, key), next, value);
  }
};

// Two keys' values: as pairs of keys, and one below the other.
inline void store_pairs(Pair* out, __m512i two) {
  _mm512_storeu_si512(out, _mm512_maskz_permutexvar_epi16(~0u, alternate(16), two));
}
inline void store_two(at::BFloat16* out, int stride, __m512i two) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(two));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + stride),
                      _mm512_maskz_extracti64x4_epi64(0xFF, two, 1));
}

// Scores S of a vector of queries -> M 2^(factor S - shift) in pairs of keys, M being zero where
// dropped. `shares` become scale over the sums, `logsumexp` that.
template <bool kDropout>
void softmax_pairs(const float* scores, float score_scale, float scale, Pair* weights,
                   float* shares, float* logsumexp, const PairQueries& queries) {
  const int i = queries.first(), stride = queries.stride;
  const float* score = scores + i;
  Vec top = vec_load(score);
  for (int j = 1; j < queries.num_keys; ++j) top = vec_max(top, vec_load(score + j * stride));
  const Vec factor = vec_set(score_scale * kLog2E), shift = top * factor;
  const Vec below = vec_set(0.f) - shift;
  const auto power = [&](int j) {
    return positive_power_of_two(vec_fma(vec_load(score + j * stride), factor, below));
  };
  Total even, odd;
  for (int j = 0; j < queries.num_keys; j += 2) {
    const Vec x = power(j), next = power(j + 1);
    even.add(x);
    odd.add(next);
    store_pairs(weights + j / 2 * stride + i, queries.round_two<kDropout>(x, next, j));
  }
  const Vec sum = even.value() + odd.value();
  vec_store(shares + i, vec_set(scale) / sum);
  vec_store(logsumexp + i, vec_fma(shift, vec_set(kLn2), logarithm(sum)));
}

// scores -> P; returns the mean over keys of x (zero where dropped), weighted by P, relative to the
// first key's x: with one key x less the mean is zero, no rounding error.
template <bool kDropout>
Vec weighted_mean(float* scores, const float* x, float score_scale, const float* logsumexp,
                  const PairQueries& queries) {
  const int i = queries.first(), stride = queries.stride;
  const Vec factor = vec_set(score_scale * kLog2E);
  const Vec below = vec_load(logsumexp + i) * vec_set(-kLog2E);
  const Vec first = queries.load_kept<kDropout>(x + i, 0);
  Total sum, weighted;
  for (int j = 0; j < queries.num_keys; ++j) {
    float* score = scores + j * stride + i;
    const Vec p = positive_power_of_two(vec_fma(vec_load(score), factor, below));
    sum.add(p);
    weighted.add_product(p, queries.load_kept<kDropout>(x + j * stride + i, j) - first);
    vec_store(score, p);
  }
  return vec_fma(weighted.value(), vec_set(1.f) / sum.value(), first);
}

// What a block's scores and their gradients become.
struct WeightGradients {
  at::BFloat16 *weights, *grads;  // [key][query]
  Pair* grad_pairs;               // of keys
};

// scores S -> M P, their gradients G -> P (M G - D), D being the sum over keys of P M G
template <bool kDropout>
void differentiate_pairs(float* scores, const float* grads, float score_scale,
                         const float* logsumexp, const WeightGradients& out,
                         const PairQueries& queries) {
  const Vec mean = weighted_mean<kDropout>(scores, grads, score_scale, logsumexp, queries);
  const int i = queries.first(), stride = queries.stride;
  const auto grad = [&](int j, Vec p) {
    return p * (queries.load_kept<kDropout>(grads + j * stride + i, j) - mean);
  };
  for (int j = 0; j < queries.num_keys; j += 2) {
    const Vec p = vec_load(scores + j * stride + i), next = vec_load(scores + (j + 1) * stride + i);
    const auto g = (__m512i)_mm512_cvtne2ps_pbh(grad(j + 1, next), grad(j, p));
    store_two(out.weights + j * stride + i, stride, queries.round_two<kDropout>(p, next, j));
    store_two(out.grads + j * stride + i, stride, g);
    store_pairs(out.grad_pairs + j / 2 * stride + i, g);
  }
}

// scores S -> M P, their tangents T -> M P (T - the sum over keys of P T) scale, in pairs of keys
template <bool kDropout>
void push_pairs(float* scores, const float* tangents, float score_scale, const float* logsumexp,
                Pair* weights, Pair* weight_tangents, const PairQueries& queries) {
  const Vec mean = weighted_mean<false>(scores, tangents, score_scale, logsumexp, queries);
  const Vec factor = vec_set(score_scale);
  const int i = queries.first(), stride = queries.stride;
  const auto tangent = [&](int j, Vec p) {
    return p * (vec_load(tangents + j * stride + i) - mean) * factor;
  };
  for (int j = 0; j < queries.num_keys; j += 2) {
    const Vec p = vec_load(scores + j * stride + i), next = vec_load(scores + (j + 1) * stride + i);
    const int place = j / 2 * stride + i;
    store_pairs(weights + place, queries.round_two<kDropout>(p, next, j));
    store_pairs(weight_tangents + place,
                queries.round_two<kDropout>(tangent(j, p), tangent(j + 1, next), j));
  }
}

}  // namespace sbrrt::SBRRT_ISA
