// Checks of attention's arguments that need no element: for every device and for tracing.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "common/attention.h"
#include "common/row_checks.h"

namespace sbrrt {

// What forward, backward and tangent have in common.
struct AttentionArguments {
  const at::Tensor &query, &key, &value;  // [num_tokens, num_heads * head_dim]
  const at::Tensor& cu_seqlens;           // int32 [num_sequences + 1]
  int64_t max_length, num_heads;
  double p;
  const at::Tensor& rng;
  int64_t site;
  const at::Tensor& rows;  // int64 [num_sequences]
  int64_t max_positions;
};

inline void check_like_query(const char* op, const char* argument, const at::Tensor& tensor,
                             const at::Tensor& query) {
  check_tensor(op, argument, tensor, query.scalar_type(), "[num_tokens, hidden], as query",
               tensor.defined() && tensor.sym_sizes() == query.sym_sizes());
}

inline void check_attention_heads(const char* op, const at::Tensor& query, int64_t num_heads) {
  TORCH_CHECK_VALUE(num_heads >= 1 && num_heads < (1 << 16), "sbrrt::", op,
                    ": num_heads must be in [1, 2^16), got ", num_heads);
  const c10::SymInt hidden = query.sym_size(1);
  TORCH_CHECK_VALUE(hidden == num_heads * 32 || hidden == num_heads * 64, "sbrrt::", op,
                    ": the head dimension, hidden / num_heads, must be 32 or 64, got ", hidden,
                    " / ", num_heads);
}

inline void check_attention_batch(const char* op, const AttentionArguments& a) {
  check_tensor(op, "cu_seqlens", a.cu_seqlens, at::kInt, "[num_sequences + 1]",
               a.cu_seqlens.defined() && a.cu_seqlens.dim() == 1 && a.cu_seqlens.sym_size(0) >= 1);
  check_tensor(op, "rows", a.rows, at::kLong, "[num_sequences], one less than cu_seqlens",
               a.rows.defined() && a.rows.dim() == 1 &&
                   a.rows.sym_size(0) + 1 == a.cu_seqlens.sym_size(0));
  TORCH_CHECK_VALUE(a.max_length >= 0 && a.max_length <= kMaxAttentionLength, "sbrrt::", op,
                    ": max_length must be in [0, ", kMaxAttentionLength, "], got ", a.max_length);
  TORCH_CHECK_VALUE(a.max_positions >= a.max_length && a.max_positions <= INT32_MAX, "sbrrt::", op,
                    ": max_positions must be at least max_length and below 2^31, got ",
                    a.max_positions, " and max_length ", a.max_length);
}

inline void check_attention(const char* op, const AttentionArguments& a, at::DeviceType device) {
  check_compute_dtype(op, "query", a.query, device);
  check_tensor(op, "query", a.query, a.query.scalar_type(), "[num_tokens, hidden]",
               a.query.dim() == 2);
  check_like_query(op, "key", a.key, a.query);
  check_like_query(op, "value", a.value, a.query);
  check_attention_heads(op, a.query, a.num_heads);
  check_attention_batch(op, a);
  check_probability(op, a.p);
  check_rng(op, a.rng);
  check_uint32(op, "site", a.site);
  check_device(op, "query", a.query, device);
  check_device(op, "key", a.key, device);
  check_device(op, "value", a.value, device);
  check_device(op, "cu_seqlens", a.cu_seqlens, device);
  check_device(op, "rng", a.rng, device);
  check_device(op, "rows", a.rows, device);
}

inline void check_logsumexp(const char* op, const at::Tensor& logsumexp,
                            const AttentionArguments& a) {
  check_tensor(op, "logsumexp", logsumexp, at::kFloat, "[num_tokens, num_heads]",
               logsumexp.defined() && logsumexp.dim() == 2 &&
                   logsumexp.sym_size(0) == a.query.sym_size(0) &&
                   logsumexp.sym_size(1) == a.num_heads);
  check_device(op, "logsumexp", logsumexp, a.query.device().type());
}

inline void check_attention_tensor(const char* op, const char* argument, const at::Tensor& tensor,
                                   const AttentionArguments& a) {
  check_like_query(op, argument, tensor, a.query);
  check_device(op, argument, tensor, a.query.device().type());
}

// A result that goes into the caller's memory.
inline void check_attention_written(const char* op, const char* argument, const at::Tensor& tensor,
                                    const AttentionArguments& a) {
  check_attention_tensor(op, argument, tensor, a);
  check_separate_rows(op, argument, tensor);
}

inline Arguments attention_read(const AttentionArguments& a) {
  return {{"query", a.query},           {"key", a.key}, {"value", a.value},
          {"cu_seqlens", a.cu_seqlens}, {"rng", a.rng}, {"rows", a.rows}};
}

inline WriteSet attention_forward_write_set(const char* op, const AttentionArguments& a,
                                            const at::Tensor& out, const at::Tensor& logsumexp,
                                            at::DeviceType device) {
  check_attention(op, a, device);
  check_attention_written(op, "out", out, a);
  check_logsumexp(op, logsumexp, a);
  TORCH_CHECK_VALUE(logsumexp.is_contiguous(), "sbrrt::", op,
                    ": logsumexp is written and must be contiguous, got strides ",
                    logsumexp.sym_strides());
  return {op, {{"out", out}, {"logsumexp", logsumexp}}, attention_read(a)};
}

// What the backward reads besides the arguments in common.
struct AttentionSaved {
  const at::Tensor &grad, &out, &logsumexp;
};

inline void check_attention_backward(const char* op, const AttentionSaved& saved,
                                     const AttentionArguments& a, at::DeviceType device) {
  check_attention(op, a, device);
  check_attention_tensor(op, "grad", saved.grad, a);
  check_attention_tensor(op, "out", saved.out, a);
  check_logsumexp(op, saved.logsumexp, a);
}

struct AttentionGradients {
  const at::Tensor &dquery, &dkey, &dvalue;
};

inline WriteSet attention_backward_write_set(const char* op, const AttentionSaved& saved,
                                             const AttentionArguments& a,
                                             const AttentionGradients& d, at::DeviceType device) {
  check_attention_backward(op, saved, a, device);
  check_attention_written(op, "dquery", d.dquery, a);
  check_attention_written(op, "dkey", d.dkey, a);
  check_attention_written(op, "dvalue", d.dvalue, a);
  Arguments read = attention_read(a);
  for (const Argument& argument :
       {Argument("grad", saved.grad), {"out", saved.out}, {"logsumexp", saved.logsumexp}}) {
    read.push_back(argument);
  }
  return {op, {{"dquery", d.dquery}, {"dkey", d.dkey}, {"dvalue", d.dvalue}}, read};
}

struct AttentionTangents {
  const at::Tensor &query, &key, &value, &logsumexp;
};

inline void check_attention_jvp(const char* op, const AttentionTangents& t,
                                const AttentionArguments& a, at::DeviceType device) {
  check_attention(op, a, device);
  check_attention_tensor(op, "query_tangent", t.query, a);
  check_attention_tensor(op, "key_tangent", t.key, a);
  check_attention_tensor(op, "value_tangent", t.value, a);
  check_logsumexp(op, t.logsumexp, a);
}

inline WriteSet attention_jvp_write_set(const char* op, const AttentionTangents& t,
                                        const AttentionArguments& a, const at::Tensor& out,
                                        at::DeviceType device) {
  check_attention_jvp(op, t, a, device);
  check_attention_written(op, "out", out, a);
  Arguments read = attention_read(a);
  for (const Argument& argument : {Argument("query_tangent", t.query),
                                   {"key_tangent", t.key},
                                   {"value_tangent", t.value},
                                   {"logsumexp", t.logsumexp}}) {
    read.push_back(argument);
  }
  return {op, {{"out", out}}, read};
}

}  // namespace sbrrt
