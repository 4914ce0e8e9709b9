// LN(residual + dropout(x + bias)): forward, backward and tangent of rows begin ... end - 1.
// Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_rows.h"
#include "cpu/dropout_words.h"
#include "cpu/layernorm_rows.h"

namespace sbrrt::SBRRT_ISA {

inline int64_t layernorm_words(int64_t width) { return dropout_words_capacity(width); }

// s = residual + M (x + bias), zero from width on; returns its sum.
inline Vec residual_sum(const ResidualInputs& in, int64_t row, const uint32_t* words,
                        LayerNormBuffers& buffers, float* s) {
  const float* x = read_row(in.x, row, in.width, buffers.row(0));
  const float* residual = read_row(in.residual, row, in.width, buffers.row(1));
  const Vec scale = vec_set(in.dropout.scale);
  Vec total = vec_set(0.0f);
  for (int64_t j = 0; j < in.width; j += kVecSize) {
    const Vec factor = vec_keep(words + j, in.dropout.threshold, scale);
    const Vec update = vec_load(x + j) + vec_load(in.bias + j);
    const Vec sum = vec_fma(update, factor, vec_load(residual + j));
    total = total + sum;
    vec_store(s + j, sum);
  }
  return total;
}

// (s - mean) rstd; what it holds from width on is never stored.
inline void standard_row(const ResidualInputs& in, const LayerNormStatistics& statistics,
                         int64_t row, const uint32_t* words, LayerNormBuffers& buffers,
                         float* standard) {
  residual_sum(in, row, words, buffers, standard);
  const Vec mean = vec_set(statistics.mean[row]), rstd = vec_set(statistics.rstd[row]);
  for (int64_t j = 0; j < in.width; j += kVecSize) {
    vec_store(standard + j, (vec_load(standard + j) - mean) * rstd);
  }
}

inline void layernorm_forward(const ResidualInputs& in, const LayerNormParameters& parameters,
                              const ResidualOutputs& out, int64_t begin, int64_t end) {
  LayerNormBuffers buffers(in.width, layernorm_words(in.width));
  float* s = buffers.row(2);
  for (int64_t row = begin; row < end; ++row) {
    const uint32_t* words = row_words(in.dropout, row, in.width, buffers.words());
    const Vec total = residual_sum(in, row, words, buffers, s);
    const RowStatistics statistics = centre_row(s, total, in.width, parameters.eps);
    float* y = begin_row(out.y, row, in.width, buffers.row(3));
    scale_row(s, statistics.rstd, parameters, in.width, y);
    finish_row(out.y, row, in.width, y);
    out.mean[row] = statistics.mean;
    out.rstd[row] = statistics.rstd;
  }
}

// dresidual = project(g), dx = M dresidual, and the column sum of dx.
template <bool kSums>
inline void store_gradients(const DropoutRows& dropout, const uint32_t* words, const float* g,
                            const float* standard, const RowMeans& means, Vec rstd, int64_t width,
                            float* dresidual, float* dx, float* dbias) {
  const Vec scale = vec_set(dropout.scale);
  for (int64_t j = 0; j < width; j += kVecSize) {
    const Vec d = project(vec_load(g + j), vec_load(standard + j), means, rstd);
    const Vec kept = d * vec_keep(words + j, dropout.threshold, scale);
    vec_store(dresidual + j, d);
    vec_store(dx + j, kept);
    if constexpr (kSums) vec_store(dbias + j, vec_load(dbias + j) + kept);
  }
}

template <bool kSums>
inline void layernorm_backward_rows(const ConstRows& dy, const ResidualInputs& in,
                                    const float* weight, const LayerNormStatistics& statistics,
                                    const ResidualGradients& out, const LayerNormSums& sums,
                                    LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  float *standard = buffers.row(2), *g = buffers.row(3);
  for (int64_t row = begin; row < end; ++row) {
    const uint32_t* words = row_words(in.dropout, row, in.width, buffers.words());
    standard_row(in, statistics, row, words, buffers, standard);
    const float* d = read_row(dy, row, in.width, buffers.row(4));
    const RowMeans means = weigh_row<kSums>(d, standard, weight, sums, in.width, g);
    float* dx = begin_row(out.dx, row, in.width, buffers.row(5));
    float* dresidual = begin_row(out.dresidual, row, in.width, buffers.row(6));
    store_gradients<kSums>(in.dropout, words, g, standard, means, vec_set(statistics.rstd[row]),
                           in.width, dresidual, dx, sums.bias);
    finish_row(out.dx, row, in.width, dx);
    finish_row(out.dresidual, row, in.width, dresidual);
  }
}

// sums.weight is null where no sums are wanted; else the block's sums, zero before.
inline void layernorm_backward(const ConstRows& dy, const ResidualInputs& in, const float* weight,
                               const LayerNormStatistics& statistics,
                               const ResidualGradients& out, const LayerNormSums& sums,
                               int64_t begin, int64_t end) {
  LayerNormBuffers buffers(in.width, layernorm_words(in.width));
  if (sums.weight != nullptr) {
    layernorm_backward_rows<true>(dy, in, weight, statistics, out, sums, buffers, begin, end);
  } else {
    layernorm_backward_rows<false>(dy, in, weight, statistics, out, sums, buffers, begin, end);
  }
}

// The tangent of s, tresidual + M tx, and what its projection needs.
inline RowMeans tangent_sum(const ConstRows& tx, const ConstRows& tresidual,
                            const ResidualInputs& in, int64_t row, const uint32_t* words,
                            const float* standard, LayerNormBuffers& buffers, float* ts) {
  const float* x = read_row(tx, row, in.width, buffers.row(0));
  const float* residual = read_row(tresidual, row, in.width, buffers.row(1));
  const Vec scale = vec_set(in.dropout.scale);
  Vec sum = vec_set(0.0f), sum_product = vec_set(0.0f);
  for (int64_t j = 0; j < in.width; j += kVecSize) {
    const Vec factor = vec_keep(words + j, in.dropout.threshold, scale);
    const Vec t = vec_fma(vec_load(x + j), factor, vec_load(residual + j));
    sum = sum + t;
    sum_product = vec_fma(t, vec_load(standard + j), sum_product);
    vec_store(ts + j, t);
  }
  return row_means(sum, sum_product, in.width);
}

inline void layernorm_jvp(const ConstRows& tx, const ConstRows& tresidual,
                          const ResidualInputs& in, const float* weight,
                          const LayerNormStatistics& statistics, const Rows& out, int64_t begin,
                          int64_t end) {
  LayerNormBuffers buffers(in.width, layernorm_words(in.width));
  float *standard = buffers.row(2), *ts = buffers.row(3);
  for (int64_t row = begin; row < end; ++row) {
    const uint32_t* words = row_words(in.dropout, row, in.width, buffers.words());
    standard_row(in, statistics, row, words, buffers, standard);
    const RowMeans means = tangent_sum(tx, tresidual, in, row, words, standard, buffers, ts);
    const Vec rstd = vec_set(statistics.rstd[row]);
    float* ty = begin_row(out, row, in.width, buffers.row(4));
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec t = project(vec_load(ts + j), vec_load(standard + j), means, rstd);
      vec_store(ty + j, t * vec_load(weight + j));
    }
    finish_row(out, row, in.width, ty);
  }
}

}  // namespace sbrrt::SBRRT_ISA
