// Packed multi-head attention on the CPU: every (sequence, head) is a small dense problem of its
// own, so results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/attention_checks.h"
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
  switch (cpu_isa(Isa::avx512_bf16)) {
#if defined(SBRRT_X86)
#if defined(SBRRT_AVX512_BF16)
    case Isa::avx512_bf16: return avx512_bf16::run_pair(problem, matrices, pair, scratch);
#endif
    case Isa::avx512: return avx512::run_pair(problem, matrices, pair, scratch);
    case Isa::avx2: return avx2::run_pair(problem, matrices, pair, scratch);
#endif
    default: return plain::run_pair(problem, matrices, pair, scratch);
  }
}

// The sequences of a batch, checked.
struct Sequences {
  at::Tensor starts, rows;            // contiguous
  std::vector<int64_t> cost_before;  // [num_sequences + 1], of one head
};

// In proportion to the time within 20% at 8 ... 128 tokens, forward and backward: scores, and what
// is done per token.
int64_t pair_cost(int64_t length) { return length * (length + 24); }

Sequences checked_sequences(const char* op, const AttentionArguments& a) {
  Sequences s{a.cu_seqlens.contiguous(), a.rows.contiguous(), {0}};
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
  TORCH_CHECK_VALUE(starts[num_sequences] == a.query.size(0), "sbrrt::", op,
                    ": cu_seqlens must end with the number of tokens, ", a.query.size(0), ", got ",
                    starts[num_sequences]);
  return s;
}

AttentionProblem problem_of(const char* op, const AttentionArguments& a) {
  const PhiloxStream stream = philox_stream(op, a.rng, a.site);
  const auto head_dim = static_cast<int>(a.query.size(1) / a.num_heads);
  const AttentionDropout dropout{stream, dropout_threshold(a.p),
                                 static_cast<float>(dropout_scale(a.p)), a.p > 0};
  return {static_cast<int>(a.num_heads), head_dim, a.max_positions, dropout,
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
}

// Every pair once. Threads share the cost evenly: a pair belongs to the range its own begins in.
template <typename Matrices>
void run(const AttentionArguments& a, const AttentionProblem& problem, const Sequences& sequences,
         const Matrices& matrices) {
  const int32_t* starts = sequences.starts.const_data_ptr<int32_t>();
  const int64_t* rows = sequences.rows.const_data_ptr<int64_t>();
  const std::vector<int64_t>& before = sequences.cost_before;
  const int64_t num_sequences = sequences.rows.size(0), num_heads = a.num_heads;
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
                  attention_element(rows[n], num_heads, head, a.max_positions)},
                 scratch);
      }
    }
  });
}

// Columns must be contiguous; rows may lie anywhere.
at::Tensor with_dense_rows(const at::Tensor& x) { return x.stride(1) == 1 ? x : x.contiguous(); }

template <typename T>
RowView<const T> read(const at::Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0)};
}

template <typename T>
RowView<T> written(const at::Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0)};
}

at::Tensor empty_like_query(const at::Tensor& query) {
  return at::empty(query.sizes(), query.options());
}

// Three tensors like query in one piece of memory, each with a storage of its own. glibc returns
// free memory at its end to the system when there is more than twice the largest piece it has seen.
// Three pieces that die together are, and the next backward pass spends its time on page faults.
std::array<at::Tensor, 3> empty_gradients(const at::Tensor& query) {
  const int64_t bytes = query.numel() * query.element_size(), step = (bytes + 63) / 64 * 64;
  const at::Tensor memory = at::empty({3 * step}, query.options().dtype(at::kByte));
  auto* data = static_cast<char*>(memory.mutable_data_ptr());
  const auto part = [&](int i) {
    return at::from_blob(data + i * step, query.sizes(), [memory](void*) {}, query.options());
  };
  return {part(0), part(1), part(2)};
}

// Calls body with a value of query's element type.
template <typename Body>
void with_element_type(const at::Tensor& query, Body body) {
  if (query.scalar_type() == at::kFloat) return body(float{});
  body(at::BFloat16{});
}

// The three below: all but the sequences' lengths and rows is checked.

void forward(const char* op, const AttentionArguments& a, const at::Tensor& out,
             const at::Tensor& logsumexp) {
  const Sequences sequences = checked_sequences(op, a);
  const AttentionProblem problem = problem_of(op, a);
  const at::Tensor q = with_dense_rows(a.query), k = with_dense_rows(a.key),
                   v = with_dense_rows(a.value);
  with_element_type(a.query, [&](auto element) {
    using T = decltype(element);
    run(a, problem, sequences,
        AttentionForward<T>{read<T>(q), read<T>(k), read<T>(v), written<T>(out),
                            logsumexp.mutable_data_ptr<float>()});
  });
}

// `saved.out` serves implementations that cannot hold a row of probabilities; here the row is at
// hand, and its own sum is more exact than one with a rounded result.
void backward(const char* op, const AttentionSaved& saved, const AttentionArguments& a,
              const AttentionGradients& d) {
  const Sequences sequences = checked_sequences(op, a);
  const AttentionProblem problem = problem_of(op, a);
  const at::Tensor q = with_dense_rows(a.query), k = with_dense_rows(a.key),
                   v = with_dense_rows(a.value), g = with_dense_rows(saved.grad),
                   sums = saved.logsumexp.contiguous();
  with_element_type(a.query, [&](auto element) {
    using T = decltype(element);
    run(a, problem, sequences,
        AttentionBackward<T>{read<T>(g), read<T>(q), read<T>(k), read<T>(v),
                             sums.const_data_ptr<float>(), written<T>(d.dquery),
                             written<T>(d.dkey), written<T>(d.dvalue)});
  });
}

void jvp(const char* op, const AttentionTangents& t, const AttentionArguments& a,
         const at::Tensor& out) {
  const Sequences sequences = checked_sequences(op, a);
  const AttentionProblem problem = problem_of(op, a);
  const at::Tensor q = with_dense_rows(a.query), k = with_dense_rows(a.key),
                   v = with_dense_rows(a.value), tq = with_dense_rows(t.query),
                   tk = with_dense_rows(t.key), tv = with_dense_rows(t.value),
                   sums = t.logsumexp.contiguous();
  with_element_type(a.query, [&](auto element) {
    using T = decltype(element);
    run(a, problem, sequences,
        AttentionTangent<T>{read<T>(q), read<T>(k), read<T>(v), read<T>(tq), read<T>(tk),
                            read<T>(tv), sums.const_data_ptr<float>(), written<T>(out)});
  });
}

}  // namespace

void attention_forward_into_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
    const at::Tensor& rng, int64_t site, const at::Tensor& rows, int64_t max_positions,
    const at::Tensor& out, const at::Tensor& logsumexp) {
  constexpr auto op = "attention_forward_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const WriteSet writes = attention_forward_write_set(op, a, out, logsumexp, at::kCPU);
  forward(op, a, out, logsumexp);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor> attention_forward_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
    const at::Tensor& rng, int64_t site, const at::Tensor& rows, int64_t max_positions) {
  constexpr auto op = "attention_forward";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  check_attention(op, a, at::kCPU);
  const at::Tensor out = empty_like_query(query);
  const at::Tensor logsumexp =
      at::empty({query.size(0), num_heads}, query.options().dtype(at::kFloat));
  forward(op, a, out, logsumexp);
  return {out, logsumexp};
}

void attention_backward_into_cpu(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp,
    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
    const at::Tensor& rng, int64_t site, const at::Tensor& rows, int64_t max_positions,
    const at::Tensor& dquery, const at::Tensor& dkey, const at::Tensor& dvalue) {
  constexpr auto op = "attention_backward_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionSaved saved{grad, out, logsumexp};
  const AttentionGradients d{dquery, dkey, dvalue};
  const WriteSet writes = attention_backward_write_set(op, saved, a, d, at::kCPU);
  backward(op, saved, a, d);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward_cpu(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& out, const at::Tensor& logsumexp, const at::Tensor& cu_seqlens,
    int64_t max_length, int64_t num_heads, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& rows, int64_t max_positions) {
  constexpr auto op = "attention_backward";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionSaved saved{grad, out, logsumexp};
  check_attention_backward(op, saved, a, at::kCPU);
  const auto [dquery, dkey, dvalue] = empty_gradients(query);
  backward(op, saved, a, {dquery, dkey, dvalue});
  return {dquery, dkey, dvalue};
}

void attention_jvp_into_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& query_tangent, const at::Tensor& key_tangent,
    const at::Tensor& value_tangent, const at::Tensor& logsumexp, const at::Tensor& cu_seqlens,
    int64_t max_length, int64_t num_heads, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& rows, int64_t max_positions, const at::Tensor& out) {
  constexpr auto op = "attention_jvp_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionTangents tangents{query_tangent, key_tangent, value_tangent, logsumexp};
  const WriteSet writes = attention_jvp_write_set(op, tangents, a, out, at::kCPU);
  jvp(op, tangents, a, out);
  writes.count_change();
}

at::Tensor attention_jvp_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& query_tangent, const at::Tensor& key_tangent,
    const at::Tensor& value_tangent, const at::Tensor& logsumexp, const at::Tensor& cu_seqlens,
    int64_t max_length, int64_t num_heads, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& rows, int64_t max_positions) {
  constexpr auto op = "attention_jvp";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionTangents tangents{query_tangent, key_tangent, value_tangent, logsumexp};
  check_attention_jvp(op, tangents, a, at::kCPU);
  const at::Tensor out = empty_like_query(query);
  jvp(op, tangents, a, out);
  return out;
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("attention_forward", &attention_forward_cpu);
  m.impl("attention_backward", &attention_backward_cpu);
  m.impl("attention_jvp", &attention_jvp_cpu);
  m.impl("attention_forward_into", &attention_forward_into_cpu);
  m.impl("attention_backward_into", &attention_backward_into_cpu);
  m.impl("attention_jvp_into", &attention_jvp_into_cpu);
}

}  // namespace sbrrt
