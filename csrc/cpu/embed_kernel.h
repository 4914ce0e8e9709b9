// BERT's first layer: forward and backward of tokens begin ... end - 1, and sums of rows of
// gradients. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_rows.h"
#include "cpu/dropout_words.h"
#include "cpu/layernorm_rows.h"

namespace sbrrt::SBRRT_ISA {

// A row s = word[id] + position[p] + type[t], zero from width on.
struct EmbeddingRow {
  const float *word, *position, *type;

  // Takes the buffers 0 to 2.
  EmbeddingRow(const EmbedInputs& in, int64_t token, LayerNormBuffers& buffers)
      : word(read_row(in.word, in.ids[token], in.width, buffers.row(0))),
        position(read_row(in.position, in.positions[token], in.width, buffers.row(1))),
        type(read_row(in.type, in.types[token], in.width, buffers.row(2))) {}

  Vec sum(int64_t j) const { return vec_load(word + j) + vec_load(position + j) + vec_load(type + j); }
};

// Fetches a later token's word row: it lies anywhere in a large table, which no processor foresees.
struct WordPrefetch {
  const char* row;
  int64_t element_size;

  WordPrefetch(const EmbedInputs& in, int64_t token)
      : element_size(in.word.is_bfloat16 ? sizeof(at::BFloat16) : sizeof(float)) {
    const int64_t id = in.ids[std::min(token, in.num_tokens - 1)];
    row = static_cast<const char*>(in.word.data) + id * in.word.stride * element_size;
  }

  void fetch(int64_t j) const { vec_prefetch(row + j * element_size); }
};

struct EmbeddingSumPass {
  EmbeddingRow row;
  float* s;
  StripTotal sum;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const Vec value = row.sum(j + u * kVecSize);
      sum.total[u] = total_add(sum.total[u], value);
      vec_store(s + j + u * kVecSize, value);
    }
  }
};

// y = M LN(s)
template <bool kDrops>
struct DropPass {
  const float *s, *weight, *shift;
  Standard standard;
  RowFactors<kDrops> factors;
  WordPrefetch next;
  float* y;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      next.fetch(i);
      const Vec value = vec_fma(standard(vec_load(s + i)), vec_load(weight + i),
                                vec_load(shift + i));
      vec_store(y + i, factors.drop(i, value));
    }
  }
};

template <bool kDrops>
inline void forward_group(const EmbedInputs& in, const LayerNormParameters& parameters,
                          const EmbedOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                          int64_t end) {
  const int64_t stop = whole_vecs(in.width);
  for (int64_t token = begin; token < end; ++token) {
    EmbeddingSumPass pass{{in, token, buffers}, buffers.row(3 + token - begin), {}};
    run_pass(pass, 0, stop);
    out.mean[token] = pass.sum.sum() / static_cast<float>(in.width);
  }
  for (int64_t token = begin; token < end; ++token) {
    const float* s = buffers.row(3 + token - begin);
    out.rstd[token] = row_rstd(s, out.mean[token], in.width, parameters.eps);
  }
  for (int64_t token = begin; token < end; ++token) {
    DropoutRun run = row_run(in.dropout, token, buffers.words());
    float* y = begin_row(out.y, token, in.width, buffers.row(0));
    DropPass<kDrops> pass{buffers.row(3 + token - begin),
                          parameters.weight,
                          parameters.shift,
                          Standard(out.mean[token], out.rstd[token]),
                          {in.dropout, run.words()},
                          WordPrefetch(in, token + kRowsPerGroup),
                          y};
    run_pass_with_words<kDrops>(pass, run, stop);
    finish_row(out.y, token, in.width, y);
  }
}

template <bool kDrops>
inline void forward_groups(const EmbedInputs& in, const LayerNormParameters& parameters,
                           const EmbedOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                           int64_t end) {
  for (int64_t token = begin; token < end; token += kRowsPerGroup) {
    forward_group<kDrops>(in, parameters, out, buffers, token,
                          std::min<int64_t>(token + kRowsPerGroup, end));
  }
}

inline void embed_forward(const EmbedInputs& in, const LayerNormParameters& parameters,
                          const EmbedOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                          int64_t end) {
  const auto run = in.dropout.drops ? forward_groups<true> : forward_groups<false>;
  run(in, parameters, out, buffers, begin, end);
}

// Recomputes the standard row, and sums for its projection and over the block's tokens.
template <bool kDrops>
struct EmbeddingStandardPass {
  EmbeddingRow row;
  RowFactors<kDrops> factors;
  WordPrefetch next;
  const float *dy, *weight;
  Standard standardize;
  float *standard, *dropped, *dweight, *dshift;
  ProjectionTotals totals;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      next.fetch(i);
      const Vec d = factors.drop(i, vec_load(dy + i)), z = standardize(row.sum(i));
      totals.add(u, vec_rounded(d * vec_load(weight + i)), z);
      vec_store(standard + i, z);
      vec_store(dropped + i, d);
      vec_store(dweight + i, vec_fma(d, z, vec_load(dweight + i)));
      vec_store(dshift + i, vec_load(dshift + i) + d);
    }
  }
};

// In place: ds = project(d weight)
struct EmbeddingGradientPass {
  float* d;
  const float *standard, *weight;
  Projection project;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      const Vec g = vec_rounded(vec_load(d + i) * vec_load(weight + i));
      vec_store(d + i, project(g, vec_load(standard + i)));
    }
  }
};

template <bool kDrops>
inline void backward_rows_of(const ConstRows& grad, const EmbedInputs& in, const float* weight,
                             const LayerNormStatistics& statistics, float* ds,
                             const LayerNormSums& sums, LayerNormBuffers& buffers, int64_t begin,
                             int64_t end) {
  const int64_t width = in.width, stop = whole_vecs(width);
  float* standard = buffers.row(3);
  for (int64_t token = begin; token < end; ++token) {
    const float mean = statistics.mean[token], rstd = statistics.rstd[token];
    DropoutRun run = row_run(in.dropout, token, buffers.words());
    float* d = ds + token * padded_width(width);
    EmbeddingStandardPass<kDrops> pass{{in, token, buffers},
                                       {in.dropout, run.words()},
                                       WordPrefetch(in, token + 1),
                                       read_row(grad, token, width, buffers.row(4)),
                                       weight,
                                       Standard(mean, rstd),
                                       standard,
                                       d,
                                       sums.weight,
                                       sums.shift,
                                       {}};
    run_pass_with_words<kDrops>(pass, run, stop);
    const ProjectionMeans means(pass.totals, width);
    EmbeddingGradientPass gradient{d, standard, weight, Projection(means, rstd)};
    run_pass(gradient, 0, stop);
  }
}

// The gradient of s, [num_tokens, padded_width(width)], and the block's column sums.
inline void embed_backward(const ConstRows& dy, const EmbedInputs& in, const float* weight,
                           const LayerNormStatistics& statistics, float* ds,
                           const LayerNormSums& sums, LayerNormBuffers& buffers, int64_t begin,
                           int64_t end) {
  clear_sums(sums.weight, in.width);
  clear_sums(sums.shift, in.width);
  const auto run = in.dropout.drops ? backward_rows_of<true> : backward_rows_of<false>;
  run(dy, in, weight, statistics, ds, sums, buffers, begin, end);
}

// Columns j ... j + kVecs * kVecSize - 1 of the sum of some tokens' rows of ds, one after the other.
template <int kVecs>
inline void sum_tokens(const float* ds, int64_t padded, const int64_t* tokens, const RowSum& row,
                       int64_t j) {
  Vec sum[kVecs];
  const float* first = ds + tokens[row.begin] * padded + j;
  SBRRT_UNROLL
  for (int u = 0; u < kVecs; ++u) sum[u] = vec_load(first + u * kVecSize);
  for (int64_t i = row.begin + 1; i < row.end; ++i) {
    const float* from = ds + tokens[i] * padded + j;
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) sum[u] = sum[u] + vec_load(from + u * kVecSize);
  }
  SBRRT_UNROLL
  for (int u = 0; u < kVecs; ++u) vec_store(row.to + j + u * kVecSize, sum[u]);
}

// Columns begin ... end - 1 of the sums of a table's rows over ds [num_tokens, padded]; they do not
// depend on how columns are shared out among threads.
inline void sum_rows(const float* ds, int64_t padded, const TableSums& table, int64_t begin,
                     int64_t end) {
  constexpr int kVecs = 4;
  for (int64_t i = 0; i < table.num_rows; ++i) {
    int64_t j = begin;
    for (; j + kVecs * kVecSize <= end; j += kVecs * kVecSize) {
      sum_tokens<kVecs>(ds, padded, table.tokens, table.rows[i], j);
    }
    for (; j < end; j += kVecSize) sum_tokens<1>(ds, padded, table.tokens, table.rows[i], j);
  }
}

}  // namespace sbrrt::SBRRT_ISA
