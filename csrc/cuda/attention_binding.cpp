// attention on CUDA: from tensors to the launchers of attention.h. Sequences are described by device
// memory, so the values of cu_seqlens and rows are not checked.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "common/attention_checks.h"
#include "cuda/attention.h"
#include "cuda/binding.h"

namespace sbrrt::cuda::attention_binding {
namespace {

constexpr int64_t kAlignment = 16;  // bytes that rows must begin on a multiple of

bool has_aligned_rows(const at::Tensor& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const int64_t row_bytes = x.stride(0) * static_cast<int64_t>(x.element_size());
  return x.stride(1) == 1 && address % kAlignment == 0 && row_bytes % kAlignment == 0;
}

// Something that kernels read: itself, or a copy.
at::Tensor with_aligned_rows(const at::Tensor& x) {
  return has_aligned_rows(x) ? x : at::empty(x.sizes(), x.options()).copy_(x);
}

AttentionRows read(const at::Tensor& x) { return {x.const_data_ptr(), x.stride(0)}; }

// Something that kernels write: itself, or memory that `finish` copies from.
class Written {
 public:
  explicit Written(const at::Tensor& target)
      : target_(target),
        memory_(has_aligned_rows(target) ? target : at::empty(target.sizes(), target.options())) {}

  AttentionResult result() const { return {memory_.mutable_data_ptr(), memory_.stride(0)}; }
  void finish() const {
    if (!memory_.is_same(target_)) target_.copy_(memory_);
  }

 private:
  at::Tensor target_, memory_;
};

// The sequences and the dropout of a batch.
struct Batch {
  at::Tensor starts, rows, rng;  // contiguous
  AttentionBatch params;

  explicit Batch(const AttentionArguments& a)
      : starts(a.cu_seqlens.contiguous()),
        rows(a.rows.contiguous()),
        rng(a.rng.contiguous()),
        params{starts.const_data_ptr<int32_t>(),
               rows.const_data_ptr<int64_t>(),
               rows.size(0),
               a.query.size(0),
               a.max_length,
               static_cast<int>(a.num_heads),
               static_cast<int>(a.query.size(1) / a.num_heads),
               element_type(a.query),
               rng.const_data_ptr<int64_t>(),
               a.site,
               a.max_positions,
               dropout_threshold(a.p),
               static_cast<float>(dropout_scale(a.p))} {}

  bool is_empty() const { return params.num_tokens == 0 || params.num_sequences == 0; }
};

Launch launch_of(const char* op, const AttentionArguments& a, const at::Tensor& other) {
  return Launch(op, a.query, {a.key, a.value, a.cu_seqlens, a.rows, a.rng, other});
}

// The three below: all arguments are checked.

void run_forward(const char* op, const AttentionArguments& a, const at::Tensor& out,
                 const at::Tensor& logsumexp) {
  const Launch launch = launch_of(op, a, out);
  const Batch batch(a);
  if (batch.is_empty()) return;
  const at::Tensor q = with_aligned_rows(a.query), k = with_aligned_rows(a.key);
  const at::Tensor v = with_aligned_rows(a.value);
  const Written result(out);
  launch(&attention_forward,
         AttentionForwardParams{batch.params, read(q), read(k), read(v), result.result(),
                                logsumexp.mutable_data_ptr<float>()});
  result.finish();
}

void run_backward(const char* op, const AttentionSaved& saved, const AttentionArguments& a,
                  const AttentionGradients& d) {
  const Launch launch = launch_of(op, a, saved.grad);
  const Batch batch(a);
  if (batch.is_empty()) return;
  const at::Tensor q = with_aligned_rows(a.query), k = with_aligned_rows(a.key);
  const at::Tensor v = with_aligned_rows(a.value), g = with_aligned_rows(saved.grad);
  const at::Tensor sums = saved.logsumexp.contiguous();
  const auto num_bytes = static_cast<int64_t>(attention_backward_workspace(batch.params));
  const at::Tensor workspace = at::empty({num_bytes}, a.query.options().dtype(at::kByte));
  const Written dq(d.dquery), dk(d.dkey), dv(d.dvalue);
  launch(&attention_backward,
         AttentionBackwardParams{batch.params, read(g), read(q), read(k), read(v),
                                 sums.const_data_ptr<float>(), dq.result(), dk.result(),
                                 dv.result(), workspace.mutable_data_ptr()});
  for (const Written* written : {&dq, &dk, &dv}) written->finish();
}

void run_jvp(const char* op, const AttentionTangents& t, const AttentionArguments& a,
             const at::Tensor& out) {
  const Launch launch = launch_of(op, a, out);
  const Batch batch(a);
  if (batch.is_empty()) return;
  const at::Tensor q = with_aligned_rows(a.query), k = with_aligned_rows(a.key),
                   v = with_aligned_rows(a.value), tq = with_aligned_rows(t.query),
                   tk = with_aligned_rows(t.key), tv = with_aligned_rows(t.value);
  const at::Tensor sums = t.logsumexp.contiguous();
  const Written result(out);
  launch(&attention_jvp,
         AttentionTangentParams{batch.params, read(q), read(k), read(v), read(tq), read(tk),
                                read(tv), sums.const_data_ptr<float>(), result.result()});
  result.finish();
}

void forward_into(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                  const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                  int64_t max_positions, const at::Tensor& out, const at::Tensor& logsumexp) {
  constexpr auto op = "attention_forward_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const WriteSet writes = attention_forward_write_set(op, a, out, logsumexp, at::kCUDA);
  run_forward(op, a, out, logsumexp);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor> forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
    const at::Tensor& rng, int64_t site, const at::Tensor& rows, int64_t max_positions) {
  constexpr auto op = "attention_forward";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  check_attention(op, a, at::kCUDA);
  const at::Tensor out = at::empty(query.sizes(), query.options());
  const at::Tensor logsumexp = empty_floats({query.size(0), num_heads}, query);
  run_forward(op, a, out, logsumexp);
  return {out, logsumexp};
}

void backward_into(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                   const at::Tensor& value, const at::Tensor& out, const at::Tensor& logsumexp,
                   const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
                   const at::Tensor& rng, int64_t site, const at::Tensor& rows,
                   int64_t max_positions, const at::Tensor& dquery, const at::Tensor& dkey,
                   const at::Tensor& dvalue) {
  constexpr auto op = "attention_backward_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionSaved saved{grad, out, logsumexp};
  const AttentionGradients d{dquery, dkey, dvalue};
  const WriteSet writes = attention_backward_write_set(op, saved, a, d, at::kCUDA);
  run_backward(op, saved, a, d);
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& out, const at::Tensor& logsumexp, const at::Tensor& cu_seqlens,
    int64_t max_length, int64_t num_heads, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& rows, int64_t max_positions) {
  constexpr auto op = "attention_backward";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionSaved saved{grad, out, logsumexp};
  check_attention_backward(op, saved, a, at::kCUDA);
  const at::Tensor dquery = at::empty(query.sizes(), query.options());
  const at::Tensor dkey = at::empty_like(dquery), dvalue = at::empty_like(dquery);
  run_backward(op, saved, a, {dquery, dkey, dvalue});
  return {dquery, dkey, dvalue};
}

void jvp_into(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
              const at::Tensor& query_tangent, const at::Tensor& key_tangent,
              const at::Tensor& value_tangent, const at::Tensor& logsumexp,
              const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
              const at::Tensor& rng, int64_t site, const at::Tensor& rows, int64_t max_positions,
              const at::Tensor& out) {
  constexpr auto op = "attention_jvp_into";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionTangents tangents{query_tangent, key_tangent, value_tangent, logsumexp};
  const WriteSet writes = attention_jvp_write_set(op, tangents, a, out, at::kCUDA);
  run_jvp(op, tangents, a, out);
  writes.count_change();
}

at::Tensor jvp(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
               const at::Tensor& query_tangent, const at::Tensor& key_tangent,
               const at::Tensor& value_tangent, const at::Tensor& logsumexp,
               const at::Tensor& cu_seqlens, int64_t max_length, int64_t num_heads, double p,
               const at::Tensor& rng, int64_t site, const at::Tensor& rows,
               int64_t max_positions) {
  constexpr auto op = "attention_jvp";
  const AttentionArguments a{query, key, value, cu_seqlens, max_length,   num_heads,
                             p,     rng, site,  rows,       max_positions};
  const AttentionTangents tangents{query_tangent, key_tangent, value_tangent, logsumexp};
  check_attention_jvp(op, tangents, a, at::kCUDA);
  const at::Tensor out = at::empty(query.sizes(), query.options());
  run_jvp(op, tangents, a, out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("attention_forward", &forward);
  m.impl("attention_backward", &backward);
  m.impl("attention_jvp", &jvp);
  m.impl("attention_forward_into", &forward_into);
  m.impl("attention_backward_into", &backward_into);
  m.impl("attention_jvp_into", &jvp_into);
}

}  // namespace sbrrt::cuda::attention_binding
