// Packed multi-head attention on the CPU: every (sequence, head) is a small dense problem of its
// own, so results do not depend on the number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/attention_op.h"
#include "common/dense_rows.h"
#include "common/dropout.h"
#include "cpu/attention_problem.h"

#define SBRRT_KERNEL_UP_TO_BF16
#define SBRRT_KERNEL "cpu/attention_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrain = 8192;  // units of `pair_cost`; well above the cost of a fork

template <typename Matrices>
void run_pair(const AttentionProblem& problem, const Matrices& matrices, const AttentionPair& pair,
              AttentionScratch& scratch) {
  SBRRT_RETURN_UP_TO_BF16(run_pair, problem, matrices, pair, scratch)
}

// Dense forms of a batch's sequences, their values checked.
struct DenseSequences {
  at::Tensor starts, rows;
  std::vector<int64_t> cost_before;  // [num_sequences + 1], of one head
};

// In proportion to the time within 20% at 8 ... 128 tokens, forward and backward: scores, and what
// is done per token.
int64_t pair_cost(int64_t length) { return length * (length + 24); }

DenseSequences checked_sequences(const char* op, const AttentionSequences& a, int64_t num_tokens) {
  DenseSequences s{a.cu_seqlens.contiguous(), a.rows.contiguous(), {0}};
  const int32_t* starts = s.starts.const_data_ptr<int32_t>();
  const int64_t* rows = s.rows.const_data_ptr<int64_t>();
  const int64_t num_sequences = a.rows.size(0);
  TORCH_CHECK_VALUE(starts[0] == 0, "sbrrt::", op, ": cu_seqlens must start with 0, got ",
                    starts[0]);
  for (int64_t n = 0; n < num_sequences; ++n) {
    const int64_t length = static_cast<int64_t>(starts[n + 1]) - starts[n];
    TORCH_CHECK_VALUE(length >= 0 && length <= a.max_length, "sbrrt::", op,
                      ": cu_seqlens must rise by at most max_length, ", a.max_length,
                      ", and not fall; from sequence ", n, " to the next it changes by ", length);
    int64_t size = a.max_positions;
    const bool overflows = __builtin_mul_overflow(size, a.max_positions, &size) ||
                           __builtin_mul_overflow(size, a.num_heads, &size) || rows[n] < 0 ||
                           __builtin_mul_overflow(size, rows[n] + int64_t{1}, &size);
    TORCH_CHECK_VALUE(!overflows, "sbrrt::", op, ": rows must not be negative and",
                      " rows * num_heads * max_positions^2 must be below 2^63, got ", rows[n]);
    s.cost_before.push_back(s.cost_before.back() + pair_cost(length));
  }
  TORCH_CHECK_VALUE(starts[num_sequences] == num_tokens, "sbrrt::", op,
                    ": cu_seqlens must end with the number of tokens, ", num_tokens, ", got ",
                    starts[num_sequences]);
  return s;
}

AttentionProblem problem_of(const char* op, const AttentionSequences& a, int64_t hidden) {
  const PhiloxStream stream = philox_stream(op, a.rng, a.site);
  const auto head_dim = static_cast<int>(hidden / a.num_heads);
  const AttentionDropout dropout{stream, dropout_threshold(a.p),
                                 static_cast<float>(dropout_scale(a.p)), a.p > 0};
  return {static_cast<int>(a.num_heads), head_dim, a.max_positions, dropout,
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
}

// Every pair once. Threads share the cost evenly: a pair belongs to the range its own begins in.
template <typename Matrices>
void for_each_pair(const AttentionProblem& problem, const DenseSequences& sequences,
                   const Matrices& matrices) {
  const int32_t* starts = sequences.starts.const_data_ptr<int32_t>();
  const int64_t* rows = sequences.rows.const_data_ptr<int64_t>();
  const std::vector<int64_t>& before = sequences.cost_before;
  const int64_t num_sequences = sequences.rows.size(0), num_heads = problem.num_heads;
  at::parallel_for(0, num_heads * before.back(), kGrain, [&](int64_t begin, int64_t end) {
    AttentionScratch scratch;
    for (int64_t n = 0; n < num_sequences; ++n) {
      const int64_t cost = before[n + 1] - before[n];
      if (cost == 0 || num_heads * before[n + 1] <= begin) continue;
      for (int64_t head = 0; head < num_heads; ++head) {
        const int64_t place = num_heads * before[n] + head * cost;
        if (place < begin || place >= end) continue;
        run_pair(problem, matrices,
                 {starts[n], starts[n + 1] - starts[n], static_cast<int>(head),
                  attention_element(rows[n], num_heads, head, problem.max_positions)},
                 scratch);
      }
    }
  });
}

template <typename T>
RowView<const T> read(const at::Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0)};
}

template <typename T>
RowView<T> written(const at::Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}

// Dense forms of three tensors, which must live as long as their views.
struct DenseQueryKeyValue {
  at::Tensor query, key, value;

  explicit DenseQueryKeyValue(const QueryKeyValue& in)
      : query(with_dense_rows(in.query)),
        key(with_dense_rows(in.key)),
        value(with_dense_rows(in.value)) {}
};

// Runs make_matrices(element) over every pair, where `element` is of query's element type.
template <typename MakeMatrices>
void run(const char* op, TensorRef query, const AttentionSequences& batch,
         MakeMatrices make_matrices) {
  const DenseSequences sequences = checked_sequences(op, batch, query.size(0));
  const AttentionProblem problem = problem_of(op, batch, query.size(1));
  if (query.scalar_type() == at::kFloat) {
    for_each_pair(problem, sequences, make_matrices(float{}));
  } else {
    for_each_pair(problem, sequences, make_matrices(at::BFloat16{}));
  }
}

}  // namespace

void AttentionForward::run_cpu() const {
  const DenseQueryKeyValue dense(in);
  run(kOp, in.query, sequences, [&](auto element) {
    using T = decltype(element);
    return ForwardMatrices<T>{read<T>(dense.query), read<T>(dense.key), read<T>(dense.value),
                              written<T>(out), logsumexp.mutable_data_ptr<float>()};
  });
}

// `out` serves implementations that cannot hold a row of probabilities; here the row is at hand,
// and its own sum is more exact than one with a rounded result.
void AttentionBackward::run_cpu() const {
  const DenseQueryKeyValue dense(in);
  const at::Tensor dense_grad = with_dense_rows(grad), sums = logsumexp.contiguous();
  run(kOp, in.query, sequences, [&](auto element) {
    using T = decltype(element);
    return BackwardMatrices<T>{read<T>(dense_grad),  read<T>(dense.query),
                               read<T>(dense.key),   read<T>(dense.value),
                               sums.const_data_ptr<float>(), written<T>(dquery),
                               written<T>(dkey),     written<T>(dvalue)};
  });
}

void AttentionJvp::run_cpu() const {
  const DenseQueryKeyValue dense(in), tangent(tangents);
  const at::Tensor sums = logsumexp.contiguous();
  run(kOp, in.query, sequences, [&](auto element) {
    using T = decltype(element);
    return JvpMatrices<T>{read<T>(dense.query),   read<T>(dense.key),   read<T>(dense.value),
                          read<T>(tangent.query), read<T>(tangent.key), read<T>(tangent.value),
                          sums.const_data_ptr<float>(), written<T>(out)};
  });
}

}  // namespace sbrrt
