// attention's launchers, for tests/cuda_on_cpu/test_cuda_attention.py: tensors are pointers with a stride of rows.
#include "cuda/attention.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

AttentionBatch batch_of(const int32_t* cu_seqlens, const int64_t* rows, int64_t num_sequences,
                        int64_t num_tokens, int64_t max_length, int64_t num_heads,
                        int64_t head_dim, int64_t dtype, const int64_t* rng, int64_t site,
                        int64_t max_positions, double p) {
  return {cu_seqlens,
          rows,
          num_sequences,
          num_tokens,
          max_length,
          max_positions,
          static_cast<int>(num_heads),
          static_cast<int>(head_dim),
          element(dtype),
          dropout_of(p, rng, site)};
}

#define BATCH                                                                                  \
  const int32_t *cu_seqlens, const int64_t *rows, int64_t num_sequences, int64_t num_tokens,   \
      int64_t max_length, int64_t num_heads, int64_t head_dim, int64_t dtype,                \
      const int64_t *rng, int64_t site, int64_t max_positions, double p
#define MAKE_BATCH                                                                           \
  batch_of(cu_seqlens, rows, num_sequences, num_tokens, max_length, num_heads, head_dim, dtype, \
           rng, site, max_positions, p)

cudaError_t forward(BATCH, const void* query, int64_t query_stride, const void* key,
                    int64_t key_stride, const void* value, int64_t value_stride, void* out,
                    int64_t out_stride, float* logsumexp) {
  return attention_forward({MAKE_BATCH,
                            {query, query_stride},
                            {key, key_stride},
                            {value, value_stride},
                            {out, out_stride},
                            logsumexp},
                           nullptr);
}

cudaError_t workspace_bytes(BATCH, int64_t* bytes) {
  *bytes = static_cast<int64_t>(attention_backward_workspace(MAKE_BATCH));
  return cudaSuccess;
}

cudaError_t backward(BATCH, const void* grad, int64_t grad_stride, const void* query,
                     int64_t query_stride, const void* key, int64_t key_stride, const void* value,
                     int64_t value_stride, const float* logsumexp, void* dquery,
                     int64_t dquery_stride, void* dkey, int64_t dkey_stride, void* dvalue,
                     int64_t dvalue_stride, void* workspace) {
  return attention_backward({MAKE_BATCH,
                             {grad, grad_stride},
                             {query, query_stride},
                             {key, key_stride},
                             {value, value_stride},
                             logsumexp,
                             {dquery, dquery_stride},
                             {dkey, dkey_stride},
                             {dvalue, dvalue_stride},
                             workspace},
                            nullptr);
}

cudaError_t jvp(BATCH, const void* query, int64_t query_stride, const void* key,
                int64_t key_stride, const void* value, int64_t value_stride,
                const void* query_tangent, int64_t query_tangent_stride, const void* key_tangent,
                int64_t key_tangent_stride, const void* value_tangent,
                int64_t value_tangent_stride, const float* logsumexp, void* out,
                int64_t out_stride) {
  return attention_jvp({MAKE_BATCH,
                        {query, query_stride},
                        {key, key_stride},
                        {value, value_stride},
                        {query_tangent, query_tangent_stride},
                        {key_tangent, key_tangent_stride},
                        {value_tangent, value_tangent_stride},
                        logsumexp,
                        {out, out_stride}},
                       nullptr);
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(workspace_bytes)
CUDA_ON_CPU_EXPORT(backward)
CUDA_ON_CPU_EXPORT(jvp)
