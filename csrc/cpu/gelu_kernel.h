// GELU of x + bias and its derivative, rows begin ... end - 1. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_math.h"
#include "cpu/vec_rows.h"

namespace sbrrt::SBRRT_ISA {

// The normal distribution's cdf and e^(-t^2 / 2).
struct NormalValues {
  Vec cdf, bell;
};

// Phi(-|t|) = e^(-t^2 / 2) (1 / 2 + u P(u)) with u = 0.36 |t| / (1 + 0.36 |t|). P is a minimax fit
// for |t| <= 13.2, beyond which Phi(-|t|) is below the smallest float; the bracket's error is
// 1.6e-8. The form is exact at 0, where Phi is largest.
inline NormalValues normal_values(Vec t) {
  const Vec one = vec_set(1.0f);
  const Vec size = vec_min(vec_set(1e4f), vec_abs(t) * vec_set(0.36f));  // NaN stays
  const Vec bell = vec_exp(t * t * vec_set(-0.5f));
  const Vec u = size * vec_reciprocal(one + size);
  Vec p = vec_set(2.170907706e-2f);
  p = vec_fma(p, u, vec_set(-9.948737919e-2f));
  p = vec_fma(p, u, vec_set(1.423072666e-1f));
  p = vec_fma(p, u, vec_set(-4.442856461e-2f));
  p = vec_fma(p, u, vec_set(2.518861927e-2f));
  p = vec_fma(p, u, vec_set(-1.585489959e-1f));
  p = vec_fma(p, u, vec_set(-9.935116768e-2f));
  p = vec_fma(p, u, vec_set(8.207715154e-1f));
  p = vec_fma(p, u, vec_set(-1.108171463f));
  const Vec tail = bell * vec_fma(p, u, vec_set(0.5f));
  return {vec_where_less(t, vec_set(0.0f), tail, one - tail), bell};
}

// d gelu / dt = Phi(t) + t phi(t)
inline Vec gelu_slope(Vec t) {
  const NormalValues n = normal_values(t);
  return vec_fma(t * vec_set(0.398942280f), n.bell, n.cdf);
}

inline void gelu_forward(const GeluInputs& in, const Rows& out, const GeluBuffers& buffers,
                         int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = read_row(in.x, row, in.width, buffers.x);
    float* y = begin_row(out, row, in.width, buffers.out);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec t = vec_load(x + j) + vec_load(in.bias + j);
      vec_store(y + j, t * normal_values(t).cdf);
    }
    finish_row(out, row, in.width, y);
  }
}

// out = change * slope, and its column sums.
template <bool kSums>
inline void gelu_change_rows(const GeluInputs& in, const ConstRows& change, const Rows& out,
                             float* sums, const GeluBuffers& buffers, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = read_row(in.x, row, in.width, buffers.x);
    const float* d = read_row(change, row, in.width, buffers.change);
    float* y = begin_row(out, row, in.width, buffers.out);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec value = vec_load(d + j) * gelu_slope(vec_load(x + j) + vec_load(in.bias + j));
      vec_store(y + j, value);
      if constexpr (kSums) vec_store(sums + j, vec_load(sums + j) + value);
    }
    finish_row(out, row, in.width, y);
  }
}

// Backward and tangent; sums [padded_width(width)] may be null.
inline void gelu_change(const GeluInputs& in, const ConstRows& change, const Rows& out,
                        float* sums, const GeluBuffers& buffers, int64_t begin, int64_t end) {
  if (sums != nullptr) {
    gelu_change_rows<true>(in, change, out, sums, buffers, begin, end);
  } else {
    gelu_change_rows<false>(in, change, out, sums, buffers, begin, end);
  }
}

}  // namespace sbrrt::SBRRT_ISA
