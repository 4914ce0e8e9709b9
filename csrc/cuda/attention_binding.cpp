// attention on CUDA: from tensors to the launchers of attention.h. Sequences are described by device
// memory, so the values of cu_seqlens and rows are not checked.
#include "common/attention_op.h"
#include "cuda/attention.h"
#include "cuda/binding.h"

namespace sbrrt {

using namespace cuda;

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

// Something that kernels write: itself, or memory that `finish` copies from.
class Written {
 public:
  explicit Written(const at::Tensor& target)
      : target_(target),
        memory_(has_aligned_rows(target) ? target : at::empty(target.sizes(), target.options())) {}

  Rows result() const { return rows(memory_); }
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

  Batch(const AttentionSequences& s, TensorRef query)
      : starts(s.cu_seqlens.contiguous()),
        rows(s.rows.contiguous()),
        rng(s.rng.contiguous()),
        params{starts.const_data_ptr<int32_t>(),
               rows.const_data_ptr<int64_t>(),
               rows.size(0),
               query.size(0),
               s.max_length,
               s.max_positions,
               static_cast<int>(s.num_heads),
               static_cast<int>(query.size(1) / s.num_heads),
               element_type(query),
               dropout_params(s.p, rng, s.site)} {}

  bool is_empty() const { return params.num_tokens == 0 || params.num_sequences == 0; }
};

struct AlignedQueryKeyValue {
  at::Tensor query, key, value;

  explicit AlignedQueryKeyValue(const QueryKeyValue& in)
      : query(with_aligned_rows(in.query)),
        key(with_aligned_rows(in.key)),
        value(with_aligned_rows(in.value)) {}
};

Launch launch_of(const char* op, const QueryKeyValue& in, const AttentionSequences& s,
                 TensorRef other) {
  return Launch(op, in.query, {in.key, in.value, s.cu_seqlens, s.rows, s.rng, other});
}

}  // namespace

void AttentionForward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, sequences, out);
  const Batch batch(sequences, in.query);
  if (batch.is_empty()) return;
  const AlignedQueryKeyValue a(in);
  const Written result(out);
  launch(&attention_forward,
         AttentionForwardParams{batch.params, const_rows(a.query), const_rows(a.key),
                                const_rows(a.value), result.result(),
                                logsumexp.mutable_data_ptr<float>()});
  result.finish();
}

void AttentionBackward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, sequences, grad);
  const Batch batch(sequences, in.query);
  if (batch.is_empty()) return;
  const AlignedQueryKeyValue a(in);
  const at::Tensor aligned_grad = with_aligned_rows(grad), sums = logsumexp.contiguous();
  const auto num_bytes = static_cast<int64_t>(attention_backward_workspace(batch.params));
  const at::Tensor workspace = at::empty({num_bytes}, in.query.options().dtype(at::kByte));
  const Written dq(dquery), dk(dkey), dv(dvalue);
  launch(&attention_backward,
         AttentionBackwardParams{batch.params, const_rows(aligned_grad), const_rows(a.query),
                                 const_rows(a.key), const_rows(a.value),
                                 sums.const_data_ptr<float>(), dq.result(), dk.result(),
                                 dv.result(), workspace.mutable_data_ptr()});
  for (const Written* written : {&dq, &dk, &dv}) written->finish();
}

void AttentionJvp::run_cuda() const {
  const Launch launch = launch_of(kOp, in, sequences, out);
  const Batch batch(sequences, in.query);
  if (batch.is_empty()) return;
  const AlignedQueryKeyValue a(in), t(tangents);
  const at::Tensor sums = logsumexp.contiguous();
  const Written result(out);
  launch(&attention_jvp,
         AttentionJvpParams{batch.params, const_rows(a.query), const_rows(a.key),
                            const_rows(a.value), const_rows(t.query), const_rows(t.key),
                            const_rows(t.value), sums.const_data_ptr<float>(), result.result()});
  result.finish();
}

}  // namespace sbrrt
