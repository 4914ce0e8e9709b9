// Sums of a few columns of one layer. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_rows.h"

namespace sbrrt::SBRRT_ISA {

// kRows rows, each times its weight, added to the sums: one pass over the sums for all of them.
template <int kRows, typename T>
inline void add_rows(const T* x, int64_t stride, const float* weights, int64_t width, float* sums) {
  Vec weight[kRows];
  SBRRT_UNROLL
  for (int r = 0; r < kRows; ++r) weight[r] = vec_set(weights[r]);
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) {
    Vec sum = vec_load(sums + j);
    SBRRT_UNROLL
    for (int r = 0; r < kRows; ++r) sum = vec_fma(vec_load(x + r * stride + j), weight[r], sum);
    vec_store(sums + j, sum);
  }
  if (j == width) return;
  Vec sum = vec_load(sums + j);
  for (int r = 0; r < kRows; ++r) {
    sum = vec_fma(vec_load_head(x + r * stride + j, width - j), weight[r], sum);
  }
  vec_store(sums + j, sum);
}

template <typename T>
inline void sum_columns_of(const ColumnRows& rows, const ColumnWeights& weights, float* part,
                           float* out) {
  const T* x = static_cast<const T*>(rows.data);
  const int64_t width = rows.width;
  std::fill_n(out, width, 0.0f);
  for (int64_t begin = 0; begin < rows.num_rows; begin += kRowsPerPart) {
    const int64_t end = std::min(begin + kRowsPerPart, rows.num_rows);
    std::fill_n(part, kColumnBlock, 0.0f);
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) {
      float four[4];
      for (int r = 0; r < 4; ++r) four[r] = weights.of(row + r);
      add_rows<4>(x + row * rows.stride, rows.stride, four, width, part);
    }
    for (; row < end; ++row) {
      const float one = weights.of(row);
      add_rows<1>(x + row * rows.stride, rows.stride, &one, width, part);
    }
    for (int64_t j = 0; j < width; ++j) out[j] += part[j];
  }
}

inline void sum_columns(const ColumnRows& rows, const ColumnWeights& weights, float* part,
                        float* out) {
  const auto run = rows.is_bfloat16 ? sum_columns_of<at::BFloat16> : sum_columns_of<float>;
  run(rows, weights, part, out);
}

}  // namespace sbrrt::SBRRT_ISA
