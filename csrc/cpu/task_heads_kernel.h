// Products of rows of features, for heads. No include guard: compiled once per instruction set.
#include "cpu/vec.h"

namespace sbrrt::SBRRT_ISA {

inline float dot(const float* a, const float* b, int64_t width) {
  VecTotal total = total_zero(), other = total_zero();
  int64_t j = 0;
  for (; j + 2 * kVecSize <= width; j += 2 * kVecSize) {
    total = total_fma(total, vec_load(a + j), vec_load(b + j));
    other = total_fma(other, vec_load(a + j + kVecSize), vec_load(b + j + kVecSize));
  }
  for (; j < width; j += kVecSize) {
    const int64_t count = width - j < kVecSize ? width - j : kVecSize;
    total = total_fma(total, vec_load_head(a + j, count), vec_load_head(b + j, count));
  }
  return total_sum(total + other);
}

// out[i] = x . row i
void dot_rows(const float* x, const float* rows, int64_t num_rows, int64_t width, float* out) {
  for (int64_t i = 0; i < num_rows; ++i) out[i] = dot(x, rows + i * width, width);
}

// out = the sum over i of coefficients[i * stride] * row i, added in their order
void sum_rows(const float* coefficients, int64_t stride, const float* rows, int64_t num_rows,
              int64_t width, float* out) {
  for (int64_t j = 0; j < width; j += kVecSize) {
    const int64_t count = width - j < kVecSize ? width - j : kVecSize;
    const bool is_whole = count == kVecSize;
    Vec sum = vec_set(0.0f);
    for (int64_t i = 0; i < num_rows; ++i) {
      const float* from = rows + i * width + j;
      const Vec x = is_whole ? vec_load(from) : vec_load_head(from, count);
      sum = vec_fma(vec_set(coefficients[i * stride]), x, sum);
    }
    is_whole ? vec_store(out + j, sum) : vec_store_head(out + j, sum, count);
  }
}

}  // namespace sbrrt::SBRRT_ISA
