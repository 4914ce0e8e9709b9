// Forward, backward and JVP of attention in bfloat16 for one head of one sequence, with products of
// bfloat16. Included after attention_kernel.h, whose overloads these are.
#include "cpu/attention_pairs.h"
#include "cpu/attention_kept.h"
#include "cpu/attention_pair_softmax.h"

namespace sbrrt::SBRRT_ISA {

constexpr int kBlockVectors = 3;         // of queries; more are not quicker
constexpr float kLowestScore = -1e30f;  // of a key that is not there

// A pair's keys, and its queries in blocks of about equal size.
struct PairExtent : Extent {
  int key_pairs;

  explicit PairExtent(int length_) {
    length = length_;
    key_pairs = (length + 1) / 2;
    const int vectors = round_up(length, kVecSize) / kVecSize;
    const int blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
    stride = (vectors + blocks - 1) / blocks * kVecSize;
  }

  // Of a block's scores, with a row for the last key's partner.
  int size() const { return 2 * key_pairs * stride; }
  void fill_last(float* x, float value) const {
    if (length % 2 != 0) std::fill_n(x + length * stride, stride, value);
  }

  // Pairs of keys as a left factor, whose rows are queries.
  PairFactor by_query(const Pair* pairs) const {
    return {reinterpret_cast<const at::BFloat16*>(pairs), 2, 2 * stride};
  }
};

// Which probabilities of a block of queries are kept, if there is dropout.
inline KeptBits kept_of(const AttentionProblem& problem, const AttentionPair& pair, int begin,
                        const PairExtent& e, AttentionScratch& scratch) {
  if (!problem.dropout.active) return {};
  const uint64_t step = problem.max_positions;
  return draw_bits(problem.dropout, pair.element + begin * step, step, e.rows(begin), e.length,
                   scratch);
}

// Calls function(PairQueries) for each vector of a block.
template <typename F>
void for_each_vector(const PairExtent& e, int begin, const KeptBits& kept, F function) {
  const int num_vectors = e.columns(begin) / kVecSize;
  for (int v = 0; v < num_vectors; ++v) function(PairQueries{v, e.length, e.stride, kept});
}

template <int kWidth>
void run(const AttentionProblem& problem, const ForwardMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length);
  const auto from = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(from(matrices.key), e.length, own.keys);
  const Pair* values = pack_pair_rows<kWidth>(from(matrices.value), e.length, own.key_rows);
  float* scores = scratch.scores.of(e.size());
  Pair* weights = own.weight_pairs.of(e.size() / 2);
  float *shares = scratch.scales.of(e.stride), *logsumexp = scratch.logsumexp.of(e.stride);
  const auto weigh = problem.dropout.active ? &softmax_pairs<true> : &softmax_pairs<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin);
    const Pair* queries = pack_pair_columns<kWidth>(from(matrices.query, begin), rows, e.stride,
                                                    own.query_columns);
    multiply_columns<kWidth>(keys, queries, e.stride, e.length, e.columns(begin), scores);
    e.fill_last(scores, kLowestScore);
    const KeptBits kept = kept_of(problem, pair, begin, e, scratch);
    for_each_vector(e, begin, kept, [&](const PairQueries& queries) {
      weigh(scores, problem.score_scale, problem.dropout.scale, weights, shares, logsumexp,
            queries);
    });
    const PairResult<kWidth> out(rows, scratch.result);
    out.add(e.by_query(weights), values, e.key_pairs, true);
    out.store(shares, from(matrices.out, begin));
    scatter(logsumexp, rows, matrices.logsumexp, problem, pair, begin);
  }
}

template <int kWidth>
void run(const AttentionProblem& problem, const BackwardMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length);
  const auto from = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(from(matrices.key), e.length, own.keys);
  const PairFactor values = pair_factor<kWidth>(from(matrices.value), e.length, own.values);
  const Pair* key_rows = pack_pair_rows<kWidth>(from(matrices.key), e.length, own.key_rows);
  float *scores = scratch.scores.of(e.size()), *grads = scratch.score_grads.of(e.size());
  const WeightGradients weighed{own.weights.of(e.size()), own.weight_grads.of(e.size()),
                                own.weight_pairs.of(e.size() / 2)};
  const PairResult<kWidth> key_grad(e.length, scratch.key_result);
  const PairResult<kWidth> value_grad(e.length, scratch.value_result);
  const float kept_scale = problem.dropout.scale, scale = problem.score_scale * kept_scale;
  const auto weigh =
      problem.dropout.active ? &differentiate_pairs<true> : &differentiate_pairs<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin), row_pairs = (rows + 1) / 2;
    const auto query = from(matrices.query, begin), grad = from(matrices.grad, begin);
    multiply_columns<kWidth>(
        keys, pack_pair_columns<kWidth>(query, rows, e.stride, own.query_columns), e.stride,
        e.length, columns, scores);
    multiply_columns<kWidth>(
        values, pack_pair_columns<kWidth>(grad, rows, e.stride, own.grad_columns), e.stride,
        e.length, columns, grads);
    e.fill_last(scores, 0.f);
    e.fill_last(grads, 0.f);
    const KeptBits kept = kept_of(problem, pair, begin, e, scratch);
    const float* logsumexp = gather(matrices.logsumexp, problem, pair, begin, e, scratch);
    for_each_vector(e, begin, kept, [&](const PairQueries& queries) {
      weigh(scores, grads, problem.score_scale, logsumexp, weighed, queries);
    });
    value_grad.add({weighed.weights, e.stride, 2},
                   pack_pair_rows<kWidth>(grad, rows, own.grad_rows), row_pairs, begin == 0);
    key_grad.add({weighed.grads, e.stride, 2}, pack_pair_rows<kWidth>(query, rows, own.query_rows),
                 row_pairs, begin == 0);
    const PairResult<kWidth> query_grad(rows, scratch.result);
    query_grad.add(e.by_query(weighed.grad_pairs), key_rows, e.key_pairs, true);
    query_grad.store(scale, from(matrices.query_grad, begin));
  }
  key_grad.store(scale, from(matrices.key_grad));
  value_grad.store(kept_scale, from(matrices.value_grad));
}

template <int kWidth>
void run(const AttentionProblem& problem, const JvpMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length);
  const auto from = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(from(matrices.key), e.length, own.keys);
  const PairFactor key_tangents =
      pair_factor<kWidth>(from(matrices.key_tangent), e.length, own.values);
  const Pair* values = pack_pair_rows<kWidth>(from(matrices.value), e.length, own.key_rows);
  const Pair* value_tangents =
      pack_pair_rows<kWidth>(from(matrices.value_tangent), e.length, own.tangent_rows);
  float *scores = scratch.scores.of(e.size()), *tangents = scratch.score_grads.of(e.size());
  Pair* weights = own.weight_pairs.of(e.size() / 2);
  Pair* weight_tangents = own.tangent_pairs.of(e.size() / 2);
  const auto weigh = problem.dropout.active ? &push_pairs<true> : &push_pairs<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const Pair* queries = pack_pair_columns<kWidth>(from(matrices.query, begin), rows, e.stride,
                                                    own.query_columns);
    const Pair* query_tangents = pack_pair_columns<kWidth>(
        from(matrices.query_tangent, begin), rows, e.stride, own.grad_columns);
    multiply_columns<kWidth>(keys, queries, e.stride, e.length, columns, scores);
    multiply_columns<kWidth>(key_tangents, queries, e.stride, e.length, columns, tangents);
    multiply_columns<kWidth>(keys, query_tangents, e.stride, e.length, columns, tangents, true);
    e.fill_last(scores, 0.f);
    e.fill_last(tangents, 0.f);
    const KeptBits kept = kept_of(problem, pair, begin, e, scratch);
    const float* logsumexp = gather(matrices.logsumexp, problem, pair, begin, e, scratch);
    for_each_vector(e, begin, kept, [&](const PairQueries& queries) {
      weigh(scores, tangents, problem.score_scale, logsumexp, weights, weight_tangents, queries);
    });
    const PairResult<kWidth> out(rows, scratch.result);
    out.add(e.by_query(weight_tangents), values, e.key_pairs, true);
    out.add(e.by_query(weights), value_tangents, e.key_pairs, false);
    out.store(problem.dropout.scale, from(matrices.out_tangent, begin));
  }
}

}  // namespace sbrrt::SBRRT_ISA
