// Forward, backward and JVP of attention in bfloat16 for one head of one sequence, with products of
// bfloat16. Included after attention_kernel.h, whose overloads these are.
//
// A block of queries meets the keys chunk by chunk, so that what lies between two products stays in
// L1; factors come from L2.
#include "cpu/attention_pairs.h"
#include "cpu/attention_kept.h"
#include "cpu/attention_pair_softmax.h"

namespace sbrrt::SBRRT_ISA {

constexpr int kBlockVectors = 3;                         // of queries
constexpr int kForwardChunk = 128, kBackwardChunk = 64;  // most keys at a time

// How queries are cut into blocks and keys into chunks, evenly.
struct PairExtent {
  int length;
  int stride;        // queries of a block, whole vectors
  int keys_at_once;  // whole groups of eight, or all

  PairExtent(int length_, int most_keys) : length(length_) {
    const int vectors = (length + kVecSize - 1) / kVecSize;
    const int blocks = (vectors + kBlockVectors - 1) / kBlockVectors;
    stride = (vectors + blocks - 1) / blocks * kVecSize;
    const int chunks = (length + most_keys - 1) / most_keys;
    keys_at_once = chunks == 1 ? length : round_up((length + chunks - 1) / chunks, 8);
  }

  bool is_one_chunk() const { return keys_at_once == length; }
  int rows(int begin) const { return std::min(stride, length - begin); }
  int columns(int begin) const { return round_up(rows(begin), kVecSize); }
  Chunk chunk(int first_key) const { return {std::min(keys_at_once, length - first_key), stride}; }
  size_t chunk_size() const { return Chunk{keys_at_once, stride}.size(); }
};

// Bits of a block's queries and a chunk's keys, if there is dropout.
inline KeptBits draw_chunk(const AttentionProblem& problem, const AttentionPair& pair, int begin,
                           int rows, int first_key, int num_keys, AttentionScratch& scratch) {
  if (!problem.dropout.active) return {};
  const uint64_t step = problem.max_positions;
  return draw_bits(problem.dropout, pair.element + begin * step + first_key, step, rows, num_keys,
                   scratch);
}

// Each row of sums [num_rows, kWidth] times its factor.
template <int kWidth>
void scale_rows(const float* factors, int num_rows, float* sums) {
  for (int i = 0; i < num_rows; ++i) {
    const Vec factor = vec_set(factors[i]);
    SBRRT_UNROLL
    for (int j = 0; j < kWidth; j += kVecSize) {
      vec_store(sums + i * kWidth + j, vec_load(sums + i * kWidth + j) * factor);
    }
  }
}

// total -> dropout's scale / total, shift -> logsumexp
inline void finish_softmax(const RunningSoftmax& rows, float scale, int columns) {
  for (int i = 0; i < columns; i += kVecSize) {
    const Vec total = vec_load(rows.total + i);
    vec_store(rows.shift + i,
              vec_fma(vec_load(rows.shift + i), vec_set(kLn2), logarithm(total)));
    vec_store(rows.total + i, vec_set(scale) / total);
  }
}

template <int kWidth>
void run(const AttentionProblem& problem, const ForwardMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length, kForwardChunk);
  const auto rows_of = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(rows_of(matrices.key), e.length, own.keys);
  const Pair* values = pack_pair_rows<kWidth>(rows_of(matrices.value), e.length, own.key_rows);
  float* scores = scratch.scores.of(e.chunk_size());
  Pair* weights = own.weight_pairs.of(e.chunk_size() / 2);
  float* sums = scratch.result.of(e.stride * kWidth);
  float* statistics = scratch.logsumexp.of(3 * e.stride);
  const RunningSoftmax running{statistics, statistics + e.stride, statistics + 2 * e.stride,
                               problem.score_scale * kLog2E};
  const auto weigh = problem.dropout.active ? &softmax_chunk<true> : &softmax_chunk<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const Pair* queries = pack_pair_columns<kWidth>(rows_of(matrices.query, begin), rows, e.stride,
                                                    own.query_columns);
    for (int key = 0; key < e.length; key += e.keys_at_once) {
      const Chunk chunk = e.chunk(key);
      multiply_columns<kWidth>(keys.at_row(key), queries, e.stride, chunk.num_keys, columns,
                               scores);
      chunk.fill_last(scores, kLowestScore);
      const KeptBits kept = draw_chunk(problem, pair, begin, rows, key, chunk.num_keys, scratch);
      bool is_raised = false;
      for (int v = 0; v < columns / kVecSize; ++v) {
        is_raised |= weigh(scores, weights, running, kept, v, chunk, key == 0);
      }
      if (is_raised) scale_rows<kWidth>(running.correction, rows, sums);
      multiply_rows<kWidth>({reinterpret_cast<const at::BFloat16*>(weights), 2, 2 * e.stride},
                            values + key / 2 * kWidth, rows, chunk.num_pairs(), sums, key > 0);
    }
    finish_softmax(running, problem.dropout.scale, columns);
    scale_rows<kWidth>(running.total, rows, sums);
    store_scaled<kWidth>(sums, rows, 1.f, rows_of(matrices.out, begin));
    scatter(running.shift, rows, matrices.logsumexp, problem, pair, begin);
  }
}

// means[i] = a_i b_i scale, zeros up to a whole vector
template <int kWidth>
void dot_rows(RowView<const at::BFloat16> a, RowView<const at::BFloat16> b, float scale, int rows,
              int columns, float* means) {
  for (int i = 0; i < rows; ++i) {
    Vec sum = vec_set(0.f);
    SBRRT_UNROLL
    for (int j = 0; j < kWidth; j += kVecSize) {
      sum = vec_fma(vec_load(a.data + i * a.stride + j), vec_load(b.data + i * b.stride + j), sum);
    }
    means[i] = vec_sum(sum) * scale;
  }
  std::fill(means + rows, means + columns, 0.f);
}

// Scores and their gradients of a block and a chunk -> what the products take. The mean of the
// gradients is summed where all keys are at hand, else it is given in `means`.
template <bool kDropout>
void weigh_chunk(float* scores, const float* grads, const float* logsumexp, const float* means,
                 float score_scale, const WeightGradients& out, const KeptBits& kept, int columns,
                 const Chunk& chunk) {
  for (int i = 0; i < columns; i += kVecSize) {
    const int v = i / kVecSize;
    const Probability probability(score_scale, logsumexp + i);
    if (means != nullptr) {
      differentiate_chunk<kDropout, false>(scores, grads, vec_load(means + i), probability,
                                           out, kept, v, chunk);
    } else {
      const Vec mean =
          weighted_mean<kDropout>(scores, grads, probability, kept, v, chunk);
      differentiate_chunk<kDropout, true>(scores, grads, mean, probability, out, kept, v,
                                          chunk);
    }
  }
}

template <int kWidth>
void run(const AttentionProblem& problem, const BackwardMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length, kBackwardChunk);
  const auto rows_of = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(rows_of(matrices.key), e.length, own.keys);
  const PairFactor values = pair_factor<kWidth>(rows_of(matrices.value), e.length, own.values);
  const Pair* key_rows = pack_pair_rows<kWidth>(rows_of(matrices.key), e.length, own.key_rows);
  float* scores = scratch.scores.of(e.chunk_size());
  float* grads = scratch.score_grads.of(e.chunk_size());
  const WeightGradients weighed{own.weights.of(e.chunk_size()),
                                own.weight_grads.of(e.chunk_size()),
                                own.weight_pairs.of(e.chunk_size() / 2)};
  float* query_sums = scratch.result.of(e.stride * kWidth);
  float* key_sums = scratch.key_result.of(e.length * kWidth);
  float* value_sums = scratch.value_result.of(e.length * kWidth);
  float* means = e.is_one_chunk() ? nullptr : scratch.scales.of(e.stride);
  const float kept_scale = problem.dropout.scale;
  const auto weigh = problem.dropout.active ? &weigh_chunk<true> : &weigh_chunk<false>;
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const auto query = rows_of(matrices.query, begin), grad = rows_of(matrices.grad, begin);
    const Pair* queries =
        pack_pair_columns<kWidth>(query, rows, e.stride, own.query_columns);
    const Pair* grad_columns = pack_pair_columns<kWidth>(grad, rows, e.stride, own.grad_columns);
    const Pair* query_rows = pack_pair_rows<kWidth>(query, rows, own.query_rows);
    const Pair* grad_rows = pack_pair_rows<kWidth>(grad, rows, own.grad_rows);
    const float* logsumexp =
        gather(matrices.logsumexp, problem, pair, begin, {e.length, e.stride}, scratch);
    if (means != nullptr) {
      dot_rows<kWidth>(grad, rows_of(matrices.out, begin), 1.f / kept_scale, rows, columns, means);
    }
    for (int key = 0; key < e.length; key += e.keys_at_once) {
      const Chunk chunk = e.chunk(key);
      multiply_columns<kWidth>(keys.at_row(key), queries, e.stride, chunk.num_keys, columns,
                               scores);
      multiply_columns<kWidth>(values.at_row(key), grad_columns, e.stride, chunk.num_keys, columns,
                               grads);
      chunk.fill_last(scores, means != nullptr ? kLowestScore : 0.f);
      chunk.fill_last(grads, 0.f);
      const KeptBits kept = draw_chunk(problem, pair, begin, rows, key, chunk.num_keys, scratch);
      weigh(scores, grads, logsumexp, means, problem.score_scale, weighed, kept, columns, chunk);
      const int query_pairs = (rows + 1) / 2;
      multiply_rows<kWidth>({weighed.weights, e.stride, 2}, grad_rows, chunk.num_keys, query_pairs,
                            value_sums + key * kWidth, begin > 0);
      multiply_rows<kWidth>({weighed.grads, e.stride, 2}, query_rows, chunk.num_keys, query_pairs,
                            key_sums + key * kWidth, begin > 0);
      multiply_rows<kWidth>(
          {reinterpret_cast<const at::BFloat16*>(weighed.grad_pairs), 2, 2 * e.stride},
          key_rows + key / 2 * kWidth, rows, chunk.num_pairs(), query_sums, key > 0);
    }
    store_scaled<kWidth>(query_sums, rows, problem.score_scale * kept_scale,
                         rows_of(matrices.query_grad, begin));
  }
  store_scaled<kWidth>(key_sums, e.length, problem.score_scale * kept_scale,
                       rows_of(matrices.key_grad));
  store_scaled<kWidth>(value_sums, e.length, kept_scale, rows_of(matrices.value_grad));
}

template <bool kDropout>
void push_block(float* scores, const float* tangents, const float* logsumexp, float score_scale,
                Pair* weights, Pair* weight_tangents, const KeptBits& kept, int columns,
                const Chunk& chunk) {
  for (int i = 0; i < columns; i += kVecSize) {
    const Probability probability(score_scale, logsumexp + i);
    const Vec mean =
        weighted_mean<false>(scores, tangents, probability, kept, i / kVecSize, chunk);
    push_pairs<kDropout>(scores, tangents, mean, score_scale, weights, weight_tangents, kept,
                         i / kVecSize, chunk);
  }
}

template <int kWidth>
void run(const AttentionProblem& problem, const JvpMatrices<at::BFloat16>& matrices,
         const AttentionPair& pair, AttentionScratch& scratch) {
  const PairExtent e(pair.length, pair.length);
  const auto rows_of = [&](auto matrix, int begin = 0) {
    return head_of(matrix, problem, pair, begin);
  };
  PairScratch& own = scratch.pairs;
  const PairFactor keys = pair_factor<kWidth>(rows_of(matrices.key), e.length, own.keys);
  const PairFactor key_tangents =
      pair_factor<kWidth>(rows_of(matrices.key_tangent), e.length, own.values);
  const Pair* values = pack_pair_rows<kWidth>(rows_of(matrices.value), e.length, own.key_rows);
  const Pair* value_tangents =
      pack_pair_rows<kWidth>(rows_of(matrices.value_tangent), e.length, own.grad_rows);
  float* scores = scratch.scores.of(e.chunk_size());
  float* tangents = scratch.score_grads.of(e.chunk_size());
  Pair* weights = own.weight_pairs.of(e.chunk_size() / 2);
  Pair* weight_tangents = own.other_pairs.of(e.chunk_size() / 2);
  float* sums = scratch.result.of(e.stride * kWidth);
  const auto push = problem.dropout.active ? &push_block<true> : &push_block<false>;
  const auto factor = [&](const Pair* x) {
    return PairFactor{reinterpret_cast<const at::BFloat16*>(x), 2, 2 * e.stride};
  };
  for (int begin = 0; begin < e.length; begin += e.stride) {
    const int rows = e.rows(begin), columns = e.columns(begin);
    const Chunk chunk = e.chunk(0);
    const Pair* queries = pack_pair_columns<kWidth>(rows_of(matrices.query, begin), rows, e.stride,
                                                    own.query_columns);
    const Pair* query_tangents = pack_pair_columns<kWidth>(
        rows_of(matrices.query_tangent, begin), rows, e.stride, own.grad_columns);
    multiply_columns<kWidth>(keys, queries, e.stride, e.length, columns, scores);
    multiply_columns<kWidth>(key_tangents, queries, e.stride, e.length, columns, tangents);
    multiply_columns<kWidth>(keys, query_tangents, e.stride, e.length, columns, tangents, true);
    chunk.fill_last(scores, 0.f);
    chunk.fill_last(tangents, 0.f);
    const float* logsumexp =
        gather(matrices.logsumexp, problem, pair, begin, {e.length, e.stride}, scratch);
    const KeptBits kept = draw_chunk(problem, pair, begin, rows, 0, e.length, scratch);
    push(scores, tangents, logsumexp, problem.score_scale, weights, weight_tangents, kept, columns,
         chunk);
    multiply_rows<kWidth>(factor(weight_tangents), values, rows, chunk.num_pairs(), sums, false);
    multiply_rows<kWidth>(factor(weights), value_tangents, rows, chunk.num_pairs(), sums, true);
    store_scaled<kWidth>(sums, rows, problem.dropout.scale, rows_of(matrices.out_tangent, begin));
  }
}

}  // namespace sbrrt::SBRRT_ISA
