// Forward, backward and JVP of attention for one head of one sequence. Included once per
// instruction set. The mathematics is in docs/math/attention.md.
//
// Scores are plain products: the scale 1 / sqrt(head_dim) and dropout's 1 / (1 - p) wait for the
// exponent and the last copy.
#include "cpu/attention_softmax.h"

namespace sbrrt::SBRRT_ISA {

constexpr int kBlockElements = 24576;  // scores of a block of queries stay in L2

// Sizes of a pair's matrices.
struct Extent {
  int length;  // keys
  int stride;  // of scores from key to key, whole vectors: queries at a time

  // How many of the queries begin ... belong to a block, and the vectors' width they take.
  int rows(int begin) const { return std::min(stride, length - begin); }
  int columns(int begin) const { return round_up(rows(begin), kVecSize); }
};

inline Extent extent_of(int length) {
  const int most = std::max(kBlockElements / length / kVecSize, 1) * kVecSize;
  return {length, std::min(round_up(length, kVecSize), most)};
}

// The rows of `matrix` that belong to queries begin ... of a pair, at its head.
template <typename T>
inline RowView<T> head_of(RowView<T> matrix, const AttentionProblem& problem,
                          const AttentionPair& pair, int begin = 0) {
  return matrix.at(pair.first_token + begin, static_cast<int64_t>(pair.head) * problem.head_dim);
}

// Random words of the queries begin ... begin + num_queries - 1, if there is dropout.
inline DropoutWords draw_block(const AttentionProblem& problem, const AttentionPair& pair,
                               int begin, int num_queries, AttentionScratch& scratch) {
  if (!problem.dropout.active) return {};
  const uint64_t step = problem.max_positions;
  return draw_words(problem.dropout, pair.element + begin * step, step, num_queries, pair.length,
                    scratch);
}

// logsumexp [num_tokens, num_heads] of the queries begin ..., zeros up to whole vectors.
inline const float* gather(const float* logsumexp, const AttentionProblem& problem,
                           const AttentionPair& pair, int begin, const Extent& e,
                           AttentionScratch& scratch) {
  float* gathered = scratch.logsumexp.of(e.stride);
  const float* from = logsumexp + (pair.first_token + begin) * problem.num_heads + pair.head;
  const int rows = e.rows(begin);
  for (int i = 0; i < rows; ++i) gathered[i] = from[i * problem.num_heads];
  std::fill(gathered + rows, gathered + e.columns(begin), 0.f);
  return gathered;
}

inline void scatter(const float* gathered, int rows, float* logsumexp,
                    const AttentionProblem& problem, const AttentionPair& pair, int begin) {
  float* to = logsumexp + (pair.first_token + begin) * problem.num_heads + pair.head;
  for (int i = 0; i < rows; ++i) to[i * problem.num_heads] = gathered[i];
}

inline Scales scales_of(const AttentionProblem& problem) {
  return {problem.score_scale, problem.dropout.scale};
}

template <int kWidth, typename T>
void run(const AttentionProblem& problem, const ForwardMatrices<T>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const Factor keys = factor<kWidth>(head_of(matrices.key, problem, pair), e.length, scratch.keys);
  const Factor values =
      pack_rows<kWidth>(head_of(matrices.value, problem, pair), e.length, scratch.values);
  float* scores = scratch.scores.of(e.length * e.stride);
  float* logsumexp = scratch.logsumexp.of(e.stride);
  const auto weigh = problem.dropout.active ? &softmax<true> : &softmax<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const float* queries = pack_columns<kWidth>(head_of(matrices.query, problem, pair, begin), rows,
                                                e.stride, scratch.query_columns);
    multiply_columns<kWidth>(keys, queries, e.stride, e.length, columns, scores);
    const DropoutWords dropout = draw_block(problem, pair, begin, rows, scratch);
    for (int i = 0; i < rows; i += kVecSize) {
      vec_store(logsumexp + i, weigh(scores + i, problem.score_scale, problem.dropout.scale,
                                     {i, e.length, e.stride, dropout}));
    }
    const Result<kWidth, T> out(head_of(matrices.out, problem, pair, begin), rows, scratch.result);
    out.add({scores, 1, e.stride}, values, e.length, true);
    out.finish();
    scatter(logsumexp, rows, matrices.logsumexp, problem, pair, begin);
  }
}

template <int kWidth, typename T>
void run(const AttentionProblem& problem, const BackwardMatrices<T>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const Factor keys = factor<kWidth>(head_of(matrices.key, problem, pair), e.length, scratch.keys);
  const Factor values =
      factor<kWidth>(head_of(matrices.value, problem, pair), e.length, scratch.values);
  float* scores = scratch.scores.of(e.length * e.stride);
  float* score_grads = scratch.score_grads.of(e.length * e.stride);
  const Result<kWidth, T> key_grad(head_of(matrices.key_grad, problem, pair), e.length,
                                   scratch.key_result);
  const Result<kWidth, T> value_grad(head_of(matrices.value_grad, problem, pair), e.length,
                                     scratch.value_result);
  const auto weigh = problem.dropout.active ? &differentiate<true> : &differentiate<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const RowView<const T> query = head_of(matrices.query, problem, pair, begin);
    const RowView<const T> grad = head_of(matrices.grad, problem, pair, begin);
    multiply_columns<kWidth>(keys,
                             pack_columns<kWidth>(query, rows, e.stride, scratch.query_columns),
                             e.stride, e.length, columns, scores);
    multiply_columns<kWidth>(values,
                             pack_columns<kWidth>(grad, rows, e.stride, scratch.grad_columns),
                             e.stride, e.length, columns, score_grads);
    const DropoutWords dropout = draw_block(problem, pair, begin, rows, scratch);
    const float* logsumexp = gather(matrices.logsumexp, problem, pair, begin, e, scratch);
    for (int i = 0; i < rows; i += kVecSize) {
      weigh(scores + i, score_grads + i, logsumexp + i, scales_of(problem),
            {i, e.length, e.stride, dropout});
    }
    const Result<kWidth, T> query_grad(head_of(matrices.query_grad, problem, pair, begin), rows,
                                       scratch.result);
    query_grad.add({score_grads, 1, e.stride}, keys, e.length, true);
    query_grad.finish();
    key_grad.add({score_grads, e.stride, 1}, factor<kWidth>(query, rows, scratch.queries), rows,
                 begin == 0);
    value_grad.add({scores, e.stride, 1}, factor<kWidth>(grad, rows, scratch.grads), rows,
                   begin == 0);
  }
  key_grad.finish();
  value_grad.finish();
}

template <int kWidth, typename T>
void run(const AttentionProblem& problem, const JvpMatrices<T>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const Extent e = extent_of(pair.length);
  const auto in_pair = [&](RowView<const T> matrix) { return head_of(matrix, problem, pair); };
  const Factor keys = factor<kWidth>(in_pair(matrices.key), e.length, scratch.keys);
  const Factor key_tangents =
      factor<kWidth>(in_pair(matrices.key_tangent), e.length, scratch.key_tangents);
  const Factor values = pack_rows<kWidth>(in_pair(matrices.value), e.length, scratch.values);
  const Factor value_tangents =
      pack_rows<kWidth>(in_pair(matrices.value_tangent), e.length, scratch.value_tangents);
  float* scores = scratch.scores.of(e.length * e.stride);
  float* score_tangents = scratch.score_grads.of(e.length * e.stride);
  const auto weigh = problem.dropout.active ? &push<true> : &push<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const float* queries = pack_columns<kWidth>(head_of(matrices.query, problem, pair, begin), rows,
                                                e.stride, scratch.query_columns);
    const float* tangents =
        pack_columns<kWidth>(head_of(matrices.query_tangent, problem, pair, begin), rows, e.stride,
                             scratch.grad_columns);
    multiply_columns<kWidth>(keys, queries, e.stride, e.length, columns, scores);
    multiply_columns<kWidth>(key_tangents, queries, e.stride, e.length, columns, score_tangents);
    multiply_columns<kWidth>(keys, tangents, e.stride, e.length, columns, score_tangents, true);
    const DropoutWords dropout = draw_block(problem, pair, begin, rows, scratch);
    const float* logsumexp = gather(matrices.logsumexp, problem, pair, begin, e, scratch);
    for (int i = 0; i < rows; i += kVecSize) {
      weigh(scores + i, score_tangents + i, logsumexp + i, scales_of(problem),
            {i, e.length, e.stride, dropout});
    }
    const Result<kWidth, T> out(head_of(matrices.out_tangent, problem, pair, begin), rows,
                                scratch.result);
    out.add({score_tangents, 1, e.stride}, values, e.length, true);
    out.add({scores, 1, e.stride}, value_tangents, e.length, false);
    out.finish();
  }
}

}  // namespace sbrrt::SBRRT_ISA

#if defined(SBRRT_LANES_AVX512_BF16)
#include "cpu/attention_pair_kernel.h"
#endif

namespace sbrrt::SBRRT_ISA {

// Forward, backward or tangent, by the type of `matrices`.
template <typename Matrices>
void run_pair(const AttentionProblem& problem, const Matrices& matrices, const AttentionPair& pair,
              AttentionScratch& scratch) {
  if (problem.head_dim == 32) return run<32>(problem, matrices, pair, scratch);
  run<64>(problem, matrices, pair, scratch);
}

}  // namespace sbrrt::SBRRT_ISA
