// embed's launchers, for tests/cuda_on_cpu/kernels.
#include "cuda/embed.h"

#include "rows.h"

using namespace sbrrt::cuda;

namespace {

#define EMBED                                                                                 \
  int64_t num_tokens, int64_t width, int64_t type, const int64_t *ids, const void *word,      \
      int64_t word_stride, int64_t num_words, const int64_t *positions, const void *position, \
      int64_t position_stride, int64_t num_positions, const int64_t *types, const void *types_table, \
      int64_t type_stride, int64_t num_types, double p, const int64_t *rng, int64_t site,     \
      const int64_t *offsets
#define MAKE_EMBED                                                     \
  {num_tokens,                                                         \
   static_cast<int>(width),                                            \
   element(type),                                                      \
   {{{word, word_stride}, num_words, ids},                             \
    {{position, position_stride}, num_positions, positions},           \
    {{types_table, type_stride}, num_types, types}},                   \
   dropout_of(p, rng, site, offsets)}

cudaError_t forward(EMBED, const float* weight, const float* shift, double eps, void* out,
                    int64_t out_stride, float* mean, float* rstd) {
  return embed_forward(
      {MAKE_EMBED, weight, shift, static_cast<float>(eps), {out, out_stride}, mean, rstd}, nullptr);
}

cudaError_t backward(EMBED, const void* grad, int64_t grad_stride, const float* weight,
                     const float* mean, const float* rstd, float* ds, float* partial) {
  return embed_backward({MAKE_EMBED, {grad, grad_stride}, weight, mean, rstd, ds, partial},
                        nullptr);
}

cudaError_t tables(int64_t num_tokens, int64_t width, int64_t type, const float* ds, float* partial,
                   const int64_t* ids, const int64_t* id_order, int64_t num_words, void* word,
                   const int64_t* positions, const int64_t* position_order, int64_t num_positions,
                   void* position, const int64_t* types, const int64_t* type_order,
                   int64_t num_types, void* types_table) {
  return embed_tables({num_tokens,
                       static_cast<int>(width),
                       element(type),
                       ds,
                       partial,
                       {{ids, id_order, num_words, word},
                        {positions, position_order, num_positions, position},
                        {types, type_order, num_types, types_table}}},
                      nullptr);
}

cudaError_t row_blocks(int64_t num_rows, int64_t* count) {
  *count = num_row_blocks(num_rows);
  return cudaSuccess;
}

}  // namespace

CUDA_ON_CPU_EXPORT(forward)
CUDA_ON_CPU_EXPORT(backward)
CUDA_ON_CPU_EXPORT(tables)
CUDA_ON_CPU_EXPORT(row_blocks)
