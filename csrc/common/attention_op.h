// Packed attention's forward, backward and JVP as ops (common/op.h).
#pragma once

#include "common/attention.h"
#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

struct QueryKeyValue {
  TensorRef query, key, value;  // [num_tokens, num_heads * head_dim]
};

// The sequences of a batch and the dropout of their probabilities.
struct AttentionSequences {
  TensorRef cu_seqlens;  // int32 [num_sequences + 1]
  int64_t max_length, num_heads;
  double p;
  TensorRef rng;
  int64_t site;
  TensorRef rows;  // int64 [num_sequences]
  int64_t max_positions;
};

struct AttentionForward {
  static constexpr auto kOp = "attention_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, int64_t, int64_t, double,
                         TensorRef, int64_t, TensorRef, int64_t, TensorRef, TensorRef);
  QueryKeyValue in;
  AttentionSequences sequences;
  TensorRef out, logsumexp;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct AttentionBackward {
  static constexpr auto kOp = "attention_backward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, int64_t, int64_t, double, TensorRef, int64_t, TensorRef,
                         int64_t, TensorRef, TensorRef, TensorRef);
  TensorRef grad;
  QueryKeyValue in;
  TensorRef out, logsumexp;  // the forward's
  AttentionSequences sequences;
  TensorRef dquery, dkey, dvalue;  // may be the parts of one [num_tokens, 3 hidden]

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct AttentionJvp {
  static constexpr auto kOp = "attention_jvp";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, int64_t, int64_t, double, TensorRef, int64_t,
                         TensorRef, int64_t, TensorRef);
  QueryKeyValue in, tangents;
  TensorRef logsumexp;  // the forward's
  AttentionSequences sequences;
  TensorRef out;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline void check_attention_heads(const char* op, TensorRef query, int64_t num_heads) {
  TORCH_CHECK_VALUE(num_heads >= 1 && num_heads < (1 << 16), "sbrrt::", op,
                    ": num_heads must be in [1, 2^16), got ", num_heads);
  const c10::SymInt hidden = query.sym_size(1);
  TORCH_CHECK_VALUE(hidden == num_heads * 32 || hidden == num_heads * 64, "sbrrt::", op,
                    ": the head dimension, hidden / num_heads, must be 32 or 64, got ", hidden,
                    " / ", num_heads);
}

inline void check_sequences(const char* op, const AttentionSequences& s) {
  check_tensor(op, "cu_seqlens", s.cu_seqlens, at::kInt, "[num_sequences + 1]",
               s.cu_seqlens.defined() && s.cu_seqlens.dim() == 1 && s.cu_seqlens.sym_size(0) >= 1);
  check_tensor(op, "rows", s.rows, at::kLong, "[num_sequences], one less than cu_seqlens",
               s.rows.defined() && s.rows.dim() == 1 &&
                   s.rows.sym_size(0) + 1 == s.cu_seqlens.sym_size(0));
  TORCH_CHECK_VALUE(s.max_length >= 0 && s.max_length <= kMaxAttentionLength, "sbrrt::", op,
                    ": max_length must be in [0, ", kMaxAttentionLength, "], got ", s.max_length);
  TORCH_CHECK_VALUE(s.max_positions >= s.max_length && s.max_positions <= INT32_MAX, "sbrrt::", op,
                    ": max_positions must be at least max_length and below 2^31, got ",
                    s.max_positions, " and max_length ", s.max_length);
}

inline void check_like_query(const char* op, const char* argument, TensorRef tensor,
                             TensorRef query) {
  check_tensor(op, argument, tensor, query.scalar_type(), "[num_tokens, hidden], as query",
               tensor.defined() && tensor.sym_sizes() == query.sym_sizes());
  check_device(op, argument, tensor, query.device().type());
}

// All but the values of cu_seqlens, rng and rows.
inline void check_attention_inputs(const char* op, const QueryKeyValue& in,
                                   const AttentionSequences& s, at::DeviceType device) {
  check_compute_dtype(op, "query", in.query, device);
  check_tensor(op, "query", in.query, in.query.scalar_type(), "[num_tokens, hidden]",
               in.query.dim() == 2);
  check_device(op, "query", in.query, device);
  check_like_query(op, "key", in.key, in.query);
  check_like_query(op, "value", in.value, in.query);
  check_attention_heads(op, in.query, s.num_heads);
  check_sequences(op, s);
  check_probability(op, s.p);
  check_rng(op, s.rng);
  check_uint32(op, "site", s.site);
  check_device(op, "cu_seqlens", s.cu_seqlens, device);
  check_device(op, "rng", s.rng, device);
  check_device(op, "rows", s.rows, device);
}

inline void check_logsumexp(const char* op, TensorRef logsumexp, TensorRef query,
                            int64_t num_heads) {
  check_tensor(op, "logsumexp", logsumexp, at::kFloat, "[num_tokens, num_heads]",
               logsumexp.defined() && logsumexp.dim() == 2 &&
                   logsumexp.sym_size(0) == query.sym_size(0) &&
                   logsumexp.sym_size(1) == num_heads);
  check_device(op, "logsumexp", logsumexp, query.device().type());
}

inline void check_attention_written(const char* op, const char* argument, TensorRef tensor,
                                    TensorRef query) {
  check_like_query(op, argument, tensor, query);
  check_separate_rows(op, argument, tensor);
}

inline Arguments attention_read(const QueryKeyValue& in, const AttentionSequences& s) {
  return {{"query", in.query},          {"key", in.key}, {"value", in.value},
          {"cu_seqlens", s.cu_seqlens}, {"rng", s.rng},  {"rows", s.rows}};
}

inline WriteSet AttentionForward::check(at::DeviceType device) const {
  check_attention_inputs(kOp, in, sequences, device);
  check_attention_written(kOp, "out", out, in.query);
  check_logsumexp(kOp, logsumexp, in.query, sequences.num_heads);
  check_contiguous(kOp, "logsumexp", logsumexp);
  return {kOp, {{"out", out}, {"logsumexp", logsumexp}}, attention_read(in, sequences)};
}

inline WriteSet AttentionBackward::check(at::DeviceType device) const {
  check_attention_inputs(kOp, in, sequences, device);
  check_like_query(kOp, "grad", grad, in.query);
  check_like_query(kOp, "out", out, in.query);
  check_logsumexp(kOp, logsumexp, in.query, sequences.num_heads);
  check_attention_written(kOp, "dquery", dquery, in.query);
  check_attention_written(kOp, "dkey", dkey, in.query);
  check_attention_written(kOp, "dvalue", dvalue, in.query);
  Arguments read = attention_read(in, sequences);
  append(read, {{"grad", grad}, {"out", out}, {"logsumexp", logsumexp}});
  return {kOp, {{"dquery", dquery}, {"dkey", dkey}, {"dvalue", dvalue}}, read};
}

inline WriteSet AttentionJvp::check(at::DeviceType device) const {
  check_attention_inputs(kOp, in, sequences, device);
  check_like_query(kOp, "query_tangent", tangents.query, in.query);
  check_like_query(kOp, "key_tangent", tangents.key, in.query);
  check_like_query(kOp, "value_tangent", tangents.value, in.query);
  check_logsumexp(kOp, logsumexp, in.query, sequences.num_heads);
  check_attention_written(kOp, "out", out, in.query);
  Arguments read = attention_read(in, sequences);
  append(read, {{"query_tangent", tangents.query},
                {"key_tangent", tangents.key},
                {"value_tangent", tangents.value},
                {"logsumexp", logsumexp}});
  return {kOp, {{"out", out}}, read};
}

}  // namespace sbrrt
