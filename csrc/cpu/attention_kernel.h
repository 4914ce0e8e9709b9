// Forward, backward and tangent of attention for one head of one sequence. Included once per
// instruction set. The mathematics is in docs/math/attention.md.
//
// Scores are plain products: the scale 1 / sqrt(head_dim) and dropout's 1 / (1 - p) wait for the
// exponent and the last copy. Keys beyond the length have a score of minus infinity.
#include "cpu/attention_matrix.h"
#include "cpu/philox_words.h"

namespace sbrrt::SBRRT_ISA {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kBlockElements = 16384;  // scores of a block of queries stay in L2

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

// Sizes of a pair's matrices.
struct Extent {
  int length, padded;  // keys; padded to whole vectors and tiles
  int block;           // queries at a time
  float tail[kVecSize];

  // Scores j ... of a row, minus infinity beyond the keys.
  Vec at_keys(Vec scores, int j) const {
    return j + kVecSize <= length ? scores : scores + vec_load(tail);
  }
};

inline Extent extent_of(int length) {
  Extent e;
  e.length = length;
  e.padded = round_up(length, std::max(kVecSize, kTileRows));
  e.block = std::min(e.padded, std::max(kBlockElements / e.padded / kTileRows * kTileRows, 16));
  for (int i = 0; i < kVecSize; ++i) {
    e.tail[i] = i < length % kVecSize ? 0.f : -std::numeric_limits<float>::infinity();
  }
  return e;
}

// The random words of a block of rows of probabilities.
struct DropoutRows {
  const uint32_t* words = nullptr;
  int stride = 0;  // words per row
  uint64_t element = 0, step = 0;  // of the first row; from row to row
  uint32_t threshold = 0;  // words below it are dropped

  const uint32_t* row(int i) const { return words + i * stride + (element + i * step) % 4; }
};

inline DropoutRows draw_rows(const AttentionProblem& problem, uint64_t element, int num_rows,
                             const Extent& e, AttentionScratch& scratch) {
  const uint64_t step = problem.max_positions;
  const int num_blocks = (e.length + (step % 4 == 0 ? 3 : 6)) / 4;  // of a row, wherever it starts
  const int total = round_up(num_rows * num_blocks, kPhiloxGroup);
  uint64_t* blocks = scratch.blocks.of(total);
  // The last row is read past its end, up to e.padded.
  uint32_t* words = scratch.words.of(4 * total + std::max(kVecSize, kTileRows));
  int count = 0;
  for (int i = 0; i < num_rows; ++i) {
    const uint64_t first = (element + i * step) / 4;
    for (int b = 0; b < num_blocks; ++b) blocks[count++] = first + b;
  }
  while (count < total) blocks[count++] = 0;
  philox_words(blocks, total, problem.dropout.stream, words);
  return {words, 4 * num_blocks, element, step, problem.dropout.threshold};
}

template <bool kDropout>
inline Vec kept(Vec x, const DropoutRows& dropout, int i, int j) {
  if constexpr (kDropout) return vec_keep(dropout.row(i) + j, dropout.threshold, x);
  return x;
}

struct RowSum {
  float maximum, sum;
};

// A sum over a row, in runs of 16 vectors that are summed in turn.
class RowTotal {
 public:
  RowTotal() : total_(vec_set(0.f)), run_(vec_set(0.f)) {}
  void add(Vec x) { finish(run_ + x); }
  void add_product(Vec a, Vec b) { finish(vec_fma(a, b, run_)); }
  float value() const { return vec_sum(total_ + run_); }

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

// Row i of a block: scores [padded] -> 2^(scale (scores - maximum)), zero where dropped; the sum is
// over all of them.
template <bool kDropout>
RowSum exponentials(float* scores, Vec scale, const Extent& e, const DropoutRows& dropout, int i) {
  Vec top = e.at_keys(vec_load(scores), 0);
  for (int j = kVecSize; j < e.padded; j += kVecSize) {
    top = vec_max(top, e.at_keys(vec_load(scores + j), j));
  }
  const float maximum = vec_largest(top);
  RowTotal sum;
  for (int j = 0; j < e.padded; j += kVecSize) {
    const Vec below = e.at_keys(vec_load(scores + j), j) - vec_set(maximum);
    const Vec x = power_of_two(below * scale);
    sum.add(x);
    vec_store(scores + j, kept<kDropout>(x, dropout, i, j));
  }
  return {maximum, sum.value()};
}

// How probabilities come from scores: 2^(scale (score - shift)), but for a factor that makes their
// sum 1, for the shift, from logsumexp, is rounded.
struct Exponent {
  Vec scale, shift;

  Vec operator()(const float* scores, int j, const Extent& e) const {
    return power_of_two(e.at_keys(vec_load(scores + j) - shift, j) * scale);
  }
};

inline Exponent exponent_of(const AttentionProblem& problem, float logsumexp) {
  return {vec_set(problem.score_scale * kLog2E), vec_set(logsumexp / problem.score_scale)};
}

// With P the probabilities and M the kept ones: scores -> M P, grads G = dO V^T -> P (M G - D),
// D = sum_j P M G. D is summed relative to the first key's M G: with one key the gradient is zero,
// not a rounding error.
template <bool kDropout>
void backward_row(float* scores, float* grads, const Exponent& exponent, const Extent& e,
                  const DropoutRows& dropout, int i) {
  const float first = kDropout && dropout.row(i)[0] < dropout.threshold ? 0.f : grads[0];
  RowTotal sum, weighted;
  for (int j = 0; j < e.padded; j += kVecSize) {
    const Vec p = exponent(scores, j, e);
    const Vec g = kept<kDropout>(vec_load(grads + j), dropout, i, j);
    sum.add(p);
    weighted.add_product(p, g - vec_set(first));
    vec_store(scores + j, p);
    vec_store(grads + j, g);
  }
  const float scale = 1.f / sum.value();
  const Vec factor = vec_set(scale), mean = vec_set(first + weighted.value() * scale);
  for (int j = 0; j < e.padded; j += kVecSize) {
    const Vec p = vec_load(scores + j) * factor;
    vec_store(grads + j, p * (vec_load(grads + j) - mean));
    vec_store(scores + j, kept<kDropout>(p, dropout, i, j));
  }
}

// scores -> M P, their tangents T -> M P (T - sum_j P T) score_scale
template <bool kDropout>
void tangent_row(float* scores, float* tangents, float score_scale, const Exponent& exponent,
                 const Extent& e, const DropoutRows& dropout, int i) {
  const float first = tangents[0];
  RowTotal sum, weighted;
  for (int j = 0; j < e.padded; j += kVecSize) {
    const Vec p = exponent(scores, j, e);
    sum.add(p);
    weighted.add_product(p, vec_load(tangents + j) - vec_set(first));
    vec_store(scores + j, p);
  }
  const float scale = 1.f / sum.value();
  const Vec factor = vec_set(scale), mean = vec_set(first + weighted.value() * scale);
  for (int j = 0; j < e.padded; j += kVecSize) {
    const Vec p = kept<kDropout>(vec_load(scores + j) * factor, dropout, i, j);
    const Vec centred = vec_load(tangents + j) - mean;
    vec_store(tangents + j, p * centred * vec_set(score_scale));
    vec_store(scores + j, p);
  }
}

// The rows of `matrix` that belong to queries begin ... of a pair, at its head.
template <typename T>
inline RowView<T> head_of(RowView<T> matrix, const AttentionProblem& problem,
                          const AttentionPair& pair, int begin = 0) {
  return matrix.at(pair.first_token + begin, static_cast<int64_t>(pair.head) * problem.head_dim);
}

// Random words of the queries begin ... begin + num_rows - 1, if there is dropout.
inline DropoutRows draw_block(const AttentionProblem& problem, const AttentionPair& pair, int begin,
                              int num_rows, const Extent& e, AttentionScratch& scratch) {
  if (!problem.dropout.active) return {};
  return draw_rows(problem, pair.element + begin * problem.max_positions, num_rows, e, scratch);
}

template <typename T>
void run_pair(const AttentionProblem& problem, const AttentionForward<T>& matrices,
              const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const int width = problem.head_dim;
  float* keys = scratch.key_columns.of(width * e.padded);
  float* values = scratch.values.of(e.padded * width);
  float* queries = scratch.queries.of(e.block * width);
  float* scores = scratch.scores.of(e.block * e.padded);
  float* result = scratch.result.of(e.block * width);
  pack_columns(head_of(matrices.key, problem, pair), e.length, e.padded, width, keys);
  pack_rows(head_of(matrices.value, problem, pair), e.length, e.length, width, values);
  const Vec exponent_scale = vec_set(problem.score_scale * kLog2E);
  const auto softmax = problem.dropout.active ? &exponentials<true> : &exponentials<false>;
  for (int begin = 0; begin < e.length; begin += e.block) {
    const int rows = std::min(e.block, e.length - begin);
    pack_rows(head_of(matrices.query, problem, pair, begin), rows, round_up(rows, kTileRows), width,
              queries);
    multiply({queries, width, 1}, keys, e.padded, rows, width, e.padded, scores, e.padded);
    const DropoutRows dropout = draw_block(problem, pair, begin, rows, e, scratch);
    float* scales = scratch.row_scales.of(e.block);
    for (int i = 0; i < rows; ++i) {
      const RowSum row = softmax(scores + i * e.padded, exponent_scale, e, dropout, i);
      scales[i] = problem.dropout.scale / row.sum;
      matrices.logsumexp[(pair.first_token + begin + i) * problem.num_heads + pair.head] =
          row.maximum * problem.score_scale + std::log(row.sum);
    }
    multiply({scores, e.padded, 1}, values, width, rows, e.length, width, result, width);
    for (int i = 0; i < rows; ++i) {
      unpack_rows(result + i * width, 1, width, scales[i],
                  head_of(matrices.out, problem, pair, begin + i));
    }
  }
}

template <typename T>
void run_pair(const AttentionProblem& problem, const AttentionBackward<T>& matrices,
              const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const int width = problem.head_dim;
  float* key_columns = scratch.key_columns.of(width * e.padded);
  float* value_columns = scratch.value_columns.of(width * e.padded);
  float* keys = scratch.keys.of(e.padded * width);
  float* queries = scratch.queries.of(e.block * width);
  float* grads = scratch.grads.of(e.block * width);
  float* scores = scratch.scores.of(e.block * e.padded);
  float* score_grads = scratch.score_grads.of(e.block * e.padded);
  float* query_result = scratch.result.of(e.block * width);
  float* key_result = scratch.key_result.of(e.padded * width);
  float* value_result = scratch.value_result.of(e.padded * width);
  pack_columns(head_of(matrices.key, problem, pair), e.length, e.padded, width, key_columns);
  pack_columns(head_of(matrices.value, problem, pair), e.length, e.padded, width, value_columns);
  pack_rows(head_of(matrices.key, problem, pair), e.length, e.length, width, keys);
  const auto differentiate = problem.dropout.active ? &backward_row<true> : &backward_row<false>;
  const float scale = problem.dropout.scale, inner_scale = scale * problem.score_scale;
  for (int begin = 0; begin < e.length; begin += e.block) {
    const int rows = std::min(e.block, e.length - begin), padded_rows = round_up(rows, kTileRows);
    pack_rows(head_of(matrices.query, problem, pair, begin), rows, padded_rows, width, queries);
    pack_rows(head_of(matrices.grad, problem, pair, begin), rows, padded_rows, width, grads);
    multiply({queries, width, 1}, key_columns, e.padded, rows, width, e.padded, scores, e.padded);
    multiply({grads, width, 1}, value_columns, e.padded, rows, width, e.padded, score_grads,
             e.padded);
    const DropoutRows dropout = draw_block(problem, pair, begin, rows, e, scratch);
    const float* logsumexp =
        matrices.logsumexp + (pair.first_token + begin) * problem.num_heads + pair.head;
    for (int i = 0; i < rows; ++i) {
      const Exponent exponent = exponent_of(problem, logsumexp[i * problem.num_heads]);
      differentiate(scores + i * e.padded, score_grads + i * e.padded, exponent, e, dropout, i);
    }
    multiply({score_grads, e.padded, 1}, keys, width, rows, e.length, width, query_result, width);
    multiply({score_grads, 1, e.padded}, queries, width, e.length, rows, width, key_result, width,
             begin > 0);
    multiply({scores, 1, e.padded}, grads, width, e.length, rows, width, value_result, width,
             begin > 0);
    unpack_rows(query_result, rows, width, inner_scale,
                head_of(matrices.query_grad, problem, pair, begin));
  }
  unpack_rows(key_result, e.length, width, inner_scale, head_of(matrices.key_grad, problem, pair));
  unpack_rows(value_result, e.length, width, scale, head_of(matrices.value_grad, problem, pair));
}

template <typename T>
void run_pair(const AttentionProblem& problem, const AttentionTangent<T>& matrices,
              const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const int width = problem.head_dim;
  float* keys = scratch.key_columns.of(width * e.padded);
  float* key_tangents = scratch.key_tangent_columns.of(width * e.padded);
  float* values = scratch.values.of(e.padded * width);
  float* value_tangents = scratch.value_tangents.of(e.padded * width);
  float* queries = scratch.queries.of(e.block * width);
  float* tangents = scratch.tangents.of(e.block * width);
  float* scores = scratch.scores.of(e.block * e.padded);
  float* score_tangents = scratch.score_grads.of(e.block * e.padded);
  float* result = scratch.result.of(e.block * width);
  pack_columns(head_of(matrices.key, problem, pair), e.length, e.padded, width, keys);
  pack_columns(head_of(matrices.key_tangent, problem, pair), e.length, e.padded, width,
               key_tangents);
  pack_rows(head_of(matrices.value, problem, pair), e.length, e.length, width, values);
  pack_rows(head_of(matrices.value_tangent, problem, pair), e.length, e.length, width,
            value_tangents);
  const auto push = problem.dropout.active ? &tangent_row<true> : &tangent_row<false>;
  for (int begin = 0; begin < e.length; begin += e.block) {
    const int rows = std::min(e.block, e.length - begin), padded_rows = round_up(rows, kTileRows);
    pack_rows(head_of(matrices.query, problem, pair, begin), rows, padded_rows, width, queries);
    pack_rows(head_of(matrices.query_tangent, problem, pair, begin), rows, padded_rows, width,
              tangents);
    multiply({queries, width, 1}, keys, e.padded, rows, width, e.padded, scores, e.padded);
    multiply({queries, width, 1}, key_tangents, e.padded, rows, width, e.padded, score_tangents,
             e.padded);
    multiply({tangents, width, 1}, keys, e.padded, rows, width, e.padded, score_tangents, e.padded,
             true);
    const DropoutRows dropout = draw_block(problem, pair, begin, rows, e, scratch);
    const float* logsumexp =
        matrices.logsumexp + (pair.first_token + begin) * problem.num_heads + pair.head;
    for (int i = 0; i < rows; ++i) {
      const Exponent exponent = exponent_of(problem, logsumexp[i * problem.num_heads]);
      push(scores + i * e.padded, score_tangents + i * e.padded, problem.score_scale, exponent, e,
           dropout, i);
    }
    multiply({score_tangents, e.padded, 1}, values, width, rows, e.length, width, result, width);
    multiply({scores, e.padded, 1}, value_tangents, width, rows, e.length, width, result, width,
             true);
    unpack_rows(result, rows, width, problem.dropout.scale,
                head_of(matrices.out_tangent, problem, pair, begin));
  }
}

}  // namespace sbrrt::SBRRT_ISA
