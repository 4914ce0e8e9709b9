// AdamW, the teacher's average and the low-precision copies over one piece of one tensor, and sums of
// squares. Included once per instruction set.
#include "cpu/vec.h"

namespace sbrrt::SBRRT_ISA {

// The first `count` elements at p; with count = kVecSize a plain load.
template <typename T>
inline Vec adamw_load(const T* p, int64_t count) {
  return count == kVecSize ? vec_load(p) : vec_load_head(p, count);
}

template <typename T>
inline void adamw_store(T* p, Vec x, int64_t count) {
  if (count == kVecSize) {
    vec_store(p, x);
  } else {
    vec_store_head(p, x, count);
  }
}

// The teacher's average and its copy, from the new parameter.
inline __attribute__((always_inline)) void adamw_average(const AdamwTensor& t,
                                                         const AdamwNumbers& n, Vec p, int64_t i,
                                                         int64_t count) {
  Vec e = adamw_load(t.ema + i, count);
  e = n.ema_new < 0.5f ? vec_fma(vec_set(n.ema_new), p - e, e)
                       : p - vec_set(n.ema_old) * (p - e);
  adamw_store(t.ema + i, e, count);
  if (t.ema_low_precision) adamw_store(t.ema_low_precision + i, e, count);
}

// Elements i ... i + count - 1; count <= kVecSize.
template <typename Grad>
inline __attribute__((always_inline)) void adamw_vector(const AdamwTensor& t,
                                                        const AdamwNumbers& n, const Grad* grad,
                                                        int64_t i, int64_t count) {
  const Vec g = adamw_load(grad + i, count) * vec_set(n.clip_factor);
  Vec m = adamw_load(t.exp_avg + i, count);
  m = vec_fma(vec_set(n.new_mean), g - m, m);
  const Vec v = vec_fma(vec_set(n.new_square) * g, g,
                        vec_set(n.old_square) * adamw_load(t.exp_avg_sq + i, count));
  const Vec root = vec_fma(vec_sqrt(v), vec_set(t.root_scale), vec_set(n.eps));
  const Vec decayed = adamw_load(t.param + i, count) * vec_set(t.kept);
  const Vec p = decayed - vec_set(t.step_size) * (m / root);
  adamw_store(t.param + i, p, count);
  adamw_store(t.exp_avg + i, m, count);
  adamw_store(t.exp_avg_sq + i, v, count);
  if (t.low_precision) adamw_store(t.low_precision + i, p, count);
  if (t.ema) adamw_average(t, n, p, i, count);
}

template <typename Grad>
void adamw_piece(const AdamwTensor& t, const AdamwNumbers& n, const Grad* grad, int64_t begin,
                 int64_t end) {
  int64_t i = begin;
  for (; i + kVecSize <= end; i += kVecSize) adamw_vector(t, n, grad, i, kVecSize);
  if (i < end) adamw_vector(t, n, grad, i, end - i);
}

// The average alone, of a parameter that stays as it is.
void adamw_average_piece(const AdamwTensor& t, const AdamwNumbers& n, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kVecSize) {
    const int64_t count = std::min<int64_t>(kVecSize, end - i);
    adamw_average(t, n, adamw_load(t.param + i, count), i, count);
  }
}

// An update whose gradient is zero.
inline __attribute__((always_inline)) void adamw_vector_idle(const AdamwTensor& t,
                                                             const AdamwNumbers& n, int64_t i,
                                                             int64_t count) {
  const Vec old_m = adamw_load(t.exp_avg + i, count);
  const Vec m = vec_fma(vec_set(n.new_mean), vec_set(0) - old_m, old_m);
  const Vec v = vec_set(n.old_square) * adamw_load(t.exp_avg_sq + i, count);
  const Vec root = vec_fma(vec_sqrt(v), vec_set(t.root_scale), vec_set(n.eps));
  const Vec decayed = adamw_load(t.param + i, count) * vec_set(t.kept);
  const Vec p = decayed - vec_set(t.step_size) * (m / root);
  adamw_store(t.param + i, p, count);
  adamw_store(t.exp_avg + i, m, count);
  adamw_store(t.exp_avg_sq + i, v, count);
  if (t.ema) adamw_average(t, n, p, i, count);
}

// The same where both moments are zero as well: weight decay alone.
inline __attribute__((always_inline)) void adamw_vector_decay(const AdamwTensor& t,
                                                              const AdamwNumbers& n, int64_t i,
                                                              int64_t count) {
  const Vec p = adamw_load(t.param + i, count) * vec_set(t.kept);
  adamw_store(t.param + i, p, count);
  if (t.ema) adamw_average(t, n, p, i, count);
}

void adamw_row_idle(const AdamwTensor& t, const AdamwNumbers& n, bool touched, int64_t begin,
                    int64_t end) {
  for (int64_t i = begin; i < end; i += kVecSize) {
    const int64_t count = std::min<int64_t>(kVecSize, end - i);
    if (touched) {
      adamw_vector_idle(t, n, i, count);
    } else {
      adamw_vector_decay(t, n, i, count);
    }
  }
}

// Float lanes hold at most this many elements together before they go into a double.
constexpr int64_t kSumBlock = 1024;

template <typename T>
inline float gradient_block_sum(const T* p, int64_t count) {
  Vec sums[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
  int64_t i = 0;
  for (; i + 4 * kVecSize <= count; i += 4 * kVecSize) {
    SBRRT_UNROLL
    for (int u = 0; u < 4; ++u) {
      const Vec x = vec_load(p + i + u * kVecSize);
      sums[u] = vec_fma(x, x, sums[u]);
    }
  }
  for (; i < count; i += kVecSize) {
    const Vec x = adamw_load(p + i, std::min<int64_t>(kVecSize, count - i));
    sums[0] = vec_fma(x, x, sums[0]);
  }
  return vec_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T>
double gradient_sum(const T* p, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i += kSumBlock) {
    sum += gradient_block_sum(p + i, std::min(kSumBlock, count - i));
  }
  return sum;
}

}  // namespace sbrrt::SBRRT_ISA
