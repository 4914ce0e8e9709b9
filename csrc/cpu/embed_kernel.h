// BERT's first layer: forward and backward of tokens begin ... end - 1, and sums of rows of
// gradients. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_rows.h"
#include "cpu/dropout_words.h"
#include "cpu/layernorm_rows.h"

namespace sbrrt::SBRRT_ISA {

inline int64_t embed_words(int64_t width) { return dropout_words_capacity(width); }

// s = word[id] + position[p] + type[t], zero from width on; returns its sum.
inline Vec embedding_sum(const EmbedInputs& in, int64_t token, LayerNormBuffers& buffers,
                         float* s) {
  const float* word = read_row(in.word, in.ids[token], in.width, buffers.row(0));
  const float* position = read_row(in.position, in.positions[token], in.width, buffers.row(1));
  const float* type = read_row(in.type, in.types[token], in.width, buffers.row(2));
  Vec total = vec_set(0.0f);
  for (int64_t j = 0; j < in.width; j += kVecSize) {
    const Vec sum = vec_load(word + j) + vec_load(position + j) + vec_load(type + j);
    total = total + sum;
    vec_store(s + j, sum);
  }
  return total;
}

// to = M from
inline void drop_row(const DropoutRows& dropout, const uint32_t* words, const float* from,
                     int64_t width, float* to) {
  const Vec scale = vec_set(dropout.scale);
  for (int64_t j = 0; j < width; j += kVecSize) {
    vec_store(to + j, vec_load(from + j) * vec_keep(words + j, dropout.threshold, scale));
  }
}

inline void embed_forward(const EmbedInputs& in, const LayerNormParameters& parameters,
                          const EmbedOutputs& out, int64_t begin, int64_t end) {
  LayerNormBuffers buffers(in.width, embed_words(in.width));
  float* s = buffers.row(3);
  for (int64_t token = begin; token < end; ++token) {
    const Vec total = embedding_sum(in, token, buffers, s);
    const RowStatistics statistics = centre_row(s, total, in.width, parameters.eps);
    float* y = begin_row(out.y, token, in.width, buffers.row(4));
    scale_row(s, statistics.rstd, parameters, in.width, y);
    if (in.dropout.drops) {
      drop_row(in.dropout, row_words(in.dropout, token, in.width, buffers.words()), y, in.width,
               y);
    }
    finish_row(out.y, token, in.width, y);
    out.mean[token] = statistics.mean;
    out.rstd[token] = statistics.rstd;
  }
}

// The gradient of s, [num_tokens, padded_width(width)], and the block's column sums.
inline void embed_backward(const ConstRows& dy, const EmbedInputs& in, const float* weight,
                           const LayerNormStatistics& statistics, float* ds,
                           const LayerNormSums& sums, int64_t begin, int64_t end) {
  LayerNormBuffers buffers(in.width, embed_words(in.width));
  float *standard = buffers.row(3), *dropped = buffers.row(4), *g = buffers.row(5);
  for (int64_t token = begin; token < end; ++token) {
    embedding_sum(in, token, buffers, standard);
    const Vec mean = vec_set(statistics.mean[token]), rstd = vec_set(statistics.rstd[token]);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      vec_store(standard + j, (vec_load(standard + j) - mean) * rstd);
    }
    const uint32_t* words = row_words(in.dropout, token, in.width, buffers.words());
    const float* d = read_row(dy, token, in.width, buffers.row(6));
    drop_row(in.dropout, words, d, in.width, dropped);
    const RowMeans means = weigh_row<true>(dropped, standard, weight, sums, in.width, g);
    float* out = ds + token * padded_width(in.width);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      vec_store(out + j, project(vec_load(g + j), vec_load(standard + j), means, rstd));
    }
  }
}

// Row `row` of the table's gradient: the sum of the rows of ds named by `tokens`, in their order.
inline void sum_rows(const float* ds, const int64_t* tokens, int64_t count, int64_t width,
                     const Rows& table, int64_t row, float* buffer) {
  const int64_t padded = padded_width(width);
  float* total = begin_row(table, row, width, buffer);
  for (int64_t i = 0; i < count; ++i) {
    const float* from = ds + tokens[i] * padded;
    for (int64_t j = 0; j < width; j += kVecSize) {
      const Vec d = vec_load(from + j);
      vec_store(total + j, i == 0 ? d : vec_load(total + j) + d);
    }
  }
  finish_row(table, row, width, total);
}

}  // namespace sbrrt::SBRRT_ISA
