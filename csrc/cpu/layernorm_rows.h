// One row of LayerNorm, forward and its adjoint, on padded rows of floats in L1. Derivations are
// in docs/math/layernorm.md. Included after vec.h.

namespace sbrrt::SBRRT_ISA {

struct RowStatistics {
  float mean, rstd;
};

// Keeps all words for p = 0.
inline const uint32_t* row_words(const DropoutRows& dropout, int64_t row, int64_t width,
                                 uint32_t* buffer) {
  if (!dropout.drops) return buffer;
  return dropout_words(dropout.offsets[row], width, dropout.stream, buffer);
}

// The mean of s is total / width; s, which is zero from width on, becomes s - mean.
inline RowStatistics centre_row(float* s, Vec total, int64_t width, float eps) {
  const float mean = vec_sum(total) / static_cast<float>(width);
  const Vec means = vec_set(mean);
  Vec squares = vec_set(0.0f);
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) {
    const Vec centred = vec_load(s + j) - means;
    squares = vec_fma(centred, centred, squares);
    vec_store(s + j, centred);
  }
  if (j < width) {
    const Vec centred = vec_head(vec_load(s + j) - means, width - j);
    squares = vec_fma(centred, centred, squares);
    vec_store(s + j, centred);
  }
  const float variance = vec_sum(squares) / static_cast<float>(width);
  return {mean, 1.0f / std::sqrt(variance + eps)};
}

// y = weight (s - mean) rstd + shift
inline void scale_row(const float* centred, float rstd, const LayerNormParameters& parameters,
                      int64_t width, float* y) {
  const Vec scale = vec_set(rstd);
  for (int64_t j = 0; j < width; j += kVecSize) {
    const Vec standard = vec_load(centred + j) * scale;
    vec_store(y + j, vec_fma(standard, vec_load(parameters.weight + j),
                             vec_load(parameters.shift + j)));
  }
}

// The means of g and of g * standard; g is zero from width on.
struct RowMeans {
  Vec g, product;
};

inline RowMeans row_means(Vec sum, Vec sum_product, int64_t width) {
  const float count = static_cast<float>(width);
  return {vec_set(vec_sum(sum) / count), vec_set(vec_sum(sum_product) / count)};
}

// rstd (g - mean(g) - standard mean(g standard)): LayerNorm's derivative, its own adjoint.
inline Vec project(Vec g, Vec standard, const RowMeans& means, Vec rstd) {
  return rstd * (g - means.g - standard * means.product);
}

// g = dy weight, its means, and the column sums of dy standard and of dy.
template <bool kSums>
inline RowMeans weigh_row(const float* dy, const float* standard, const float* weight,
                          const LayerNormSums& sums, int64_t width, float* g) {
  Vec sum = vec_set(0.0f), sum_product = vec_set(0.0f);
  for (int64_t j = 0; j < width; j += kVecSize) {
    const Vec d = vec_load(dy + j), x = vec_load(standard + j);
    const Vec weighted = d * vec_load(weight + j);
    sum = sum + weighted;
    sum_product = vec_fma(weighted, x, sum_product);
    vec_store(g + j, weighted);
    if constexpr (kSums) {
      vec_store(sums.weight + j, vec_fma(d, x, vec_load(sums.weight + j)));
      vec_store(sums.shift + j, vec_load(sums.shift + j) + d);
    }
  }
  return row_means(sum, sum_product, width);
}

}  // namespace sbrrt::SBRRT_ISA
