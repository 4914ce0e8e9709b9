// What happens to scores between attention's products of bfloat16. Included after
// attention_kept.h.
//
// Scores lie as [key][query], as in attention_softmax.h, and come in chunks of keys; results are
// rounded to bfloat16, two keys at a time. The row below an odd number of keys is filled
// (fill_last), so that its partner has one.

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

// Scores, or their gradients or tangents, of a chunk of keys and a block of queries.
struct Chunk {
  int num_keys, stride;  // from key to key

  int num_pairs() const { return (num_keys + 1) / 2; }
  size_t size() const { return static_cast<size_t>(2 * num_pairs()) * stride; }

  // Gives the last key a partner.
  void fill_last(float* x, float value) const {
    if (num_keys % 2 != 0) std::fill_n(x + num_keys * stride, stride, value);
  }
};

constexpr float kLowestScore = -1e30f;  // of a key that is not there

// Two keys' values of 16 queries in bfloat16, the second's in the upper half; zero where not kept.
template <bool kDropout>
__m512i round_two(Vec first, Vec second, const KeptBits& kept, int vector, int key) {
  if constexpr (!kDropout) return (__m512i)_mm512_cvtne2ps_pbh(second, first);
  return (__m512i)_mm512_maskz_cvtne2ps_pbh(kept.of_two(vector, key), second, first);
}

// The two as pairs of keys; the two one below the other.
inline void store_pairs(Pair* out, __m512i two) {
  _mm512_storeu_si512(out, _mm512_maskz_permutexvar_epi16(~0u, alternate(16), two));
}
inline void store_two(at::BFloat16* out, int stride, __m512i two) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(two));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + stride),
                      _mm512_maskz_extracti64x4_epi64(0xFF, two, 1));
}

// A row of softmax whose keys come chunk by chunk: 2^(factor score - shift) are summed, and the
// shift rises where a later chunk's largest is far above it.
struct RunningSoftmax {
  float *shift, *total, *correction;  // [queries of a block]
  float factor;
};

constexpr float kMostAboveShift = 16.f;

// The shift for one more chunk; returns whether what was summed before must be corrected.
inline bool raise_shift(const RunningSoftmax& rows, int i, Vec largest, bool is_first) {
  if (is_first) {
    vec_store(rows.shift + i, largest);
    vec_store(rows.total + i, vec_set(0.f));
    return false;
  }
  const Vec shift = vec_load(rows.shift + i), limit = shift + vec_set(kMostAboveShift);
  if (_mm512_cmp_ps_mask(limit, largest, _CMP_LT_OQ) == 0) {
    vec_store(rows.correction + i, vec_set(1.f));
    return false;
  }
  const Vec raised = vec_where_less(limit, largest, largest, shift);
  const Vec correction = positive_power_of_two(shift - raised);
  vec_store(rows.shift + i, raised);
  vec_store(rows.total + i, vec_load(rows.total + i) * correction);
  vec_store(rows.correction + i, correction);
  return true;
}

// scores of a vector of queries -> 2^(factor score - shift), zero where dropped, in pairs of keys
template <bool kDropout>
bool softmax_chunk(const float* scores, Pair* weights, const RunningSoftmax& rows,
                   const KeptBits& kept, int vector, const Chunk& chunk, bool is_first) {
  const int i = vector * kVecSize, stride = chunk.stride;
  const float* score = scores + i;
  Vec top = vec_load(score), other = vec_load(score + (chunk.num_keys > 1 ? stride : 0));
  for (int j = 2; j < chunk.num_keys; j += 2) {
    top = vec_max(top, vec_load(score + j * stride));
    other = vec_max(other, vec_load(score + (j + 1) * stride));
  }
  const Vec factor = vec_set(rows.factor);
  const bool is_raised = raise_shift(rows, i, vec_max(top, other) * factor, is_first);
  const Vec below = vec_set(0.f) - vec_load(rows.shift + i);
  Vec even = vec_set(0.f), odd = vec_set(0.f);
  for (int j = 0; j < chunk.num_keys; j += 2) {
    const Vec first = positive_power_of_two(vec_fma(vec_load(score + j * stride), factor, below));
    const Vec second =
        positive_power_of_two(vec_fma(vec_load(score + (j + 1) * stride), factor, below));
    even = even + first;
    odd = odd + second;
    store_pairs(weights + j / 2 * stride + i, round_two<kDropout>(first, second, kept, vector, j));
  }
  vec_store(rows.total + i, vec_load(rows.total + i) + (even + odd));
  return is_raised;
}

// 2^(factor score - shift), the shift being logsumexp's.
struct Probability {
  Vec factor, below;

  Probability(float score_scale, const float* logsumexp)
      : factor(vec_set(score_scale * kLog2E)), below(vec_load(logsumexp) * vec_set(-kLog2E)) {}
  Vec operator()(const float* score) const {
    return positive_power_of_two(vec_fma(vec_load(score), factor, below));
  }
};

template <bool kDropout>
Vec load_kept(const float* x, const KeptBits& kept, int vector, int key) {
  if constexpr (!kDropout) return vec_load(x);
  return _mm512_maskz_loadu_ps(kept.of(vector, key), x);
}

// scores -> P; returns the mean over keys of x (zero where dropped), weighted by P, relative to the
// first key's x: with one key x less the mean is zero, no rounding error.
template <bool kDropout>
Vec weighted_mean(float* scores, const float* x, const Probability& probability,
                  const KeptBits& kept, int vector, const Chunk& chunk) {
  const int i = vector * kVecSize, stride = chunk.stride;
  const Vec first = load_kept<kDropout>(x + i, kept, vector, 0);
  Total sum, weighted;
  for (int j = 0; j < chunk.num_keys; ++j) {
    float* score = scores + j * stride + i;
    const Vec p = probability(score);
    sum.add(p);
    weighted.add_product(p, load_kept<kDropout>(x + j * stride + i, kept, vector, j) - first);
    vec_store(score, p);
  }
  return vec_fma(weighted.value(), vec_set(1.f) / sum.value(), first);
}

// What a chunk's scores and their gradients become.
struct WeightGradients {
  at::BFloat16 *weights, *grads;  // [key][query]
  Pair* grad_pairs;               // of keys
};

// scores (or P, if they are that already) -> M P, their gradients G -> P (M G - mean)
template <bool kDropout, bool kHasProbabilities>
void differentiate_chunk(const float* scores, const float* grads, Vec mean,
                         const Probability& probability, const WeightGradients& out,
                         const KeptBits& kept, int vector, const Chunk& chunk) {
  const int i = vector * kVecSize, stride = chunk.stride;
  const auto p = [&](int j) {
    const float* score = scores + j * stride + i;
    return kHasProbabilities ? vec_load(score) : probability(score);
  };
  const auto grad = [&](int j) { return load_kept<kDropout>(grads + j * stride + i, kept, vector, j); };
  for (int j = 0; j < chunk.num_keys; j += 2) {
    const Vec first = p(j), second = p(j + 1);
    const __m512i g = (__m512i)_mm512_cvtne2ps_pbh(second * (grad(j + 1) - mean),
                                                   first * (grad(j) - mean));
    store_two(out.weights + j * stride + i, stride,
              round_two<kDropout>(first, second, kept, vector, j));
    store_two(out.grads + j * stride + i, stride, g);
    store_pairs(out.grad_pairs + j / 2 * stride + i, g);
  }
}

// P -> M P, tangents T of scores -> M P (T - mean) scale, in pairs of keys
template <bool kDropout>
void push_pairs(const float* probabilities, const float* tangents, Vec mean, float scale,
                Pair* weights, Pair* weight_tangents, const KeptBits& kept, int vector,
                const Chunk& chunk) {
  const int i = vector * kVecSize, stride = chunk.stride;
  const Vec factor = vec_set(scale);
  const auto tangent = [&](int j, Vec p) {
    return p * (vec_load(tangents + j * stride + i) - mean) * factor;
  };
  for (int j = 0; j < chunk.num_keys; j += 2) {
    const Vec first = vec_load(probabilities + j * stride + i);
    const Vec second = vec_load(probabilities + (j + 1) * stride + i);
    store_pairs(weights + j / 2 * stride + i, round_two<kDropout>(first, second, kept, vector, j));
    store_pairs(weight_tangents + j / 2 * stride + i,
                round_two<kDropout>(tangent(j, first), tangent(j + 1, second), kept, vector, j));
  }
}

}  // namespace sbrrt::SBRRT_ISA
