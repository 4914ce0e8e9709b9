// GELU of x + bias and its derivative, rows begin ... end - 1. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_math.h"
#include "cpu/vec_rows.h"

namespace sbrrt::SBRRT_ISA {

#if defined(SBRRT_LANES_AVX512)

// Where numbers t lie in the tables.
struct TablePlace {
  __m512i piece;
  Vec r;
  __mmask16 is_above;  // whether t >= 0

  explicit TablePlace(Vec t) {
    const Vec shift = vec_set(12582912.0f);  // 1.5 * 2^23: a sum's low bits are the nearest integer
    const Vec scaled = vec_abs(t) * vec_set(static_cast<float>(kGeluPiecesPerUnit));
    const Vec size = vec_min(vec_set(kGeluPieces - 1), scaled);  // of a NaN: the second
    const Vec shifted = size + shift;
    r = size - (shifted - shift);
    piece = _mm512_castps_si512(shifted);
    is_above = _mm512_cmp_ps_mask(t, vec_set(0.0f), _CMP_GE_OQ);
  }
};

// A function f with f(t) = 1 - f(-t) from the table of f(-a): a register holds half of the pieces'
// coefficients of one order, and an instruction looks them up for all lanes.
class TableFunction {
 public:
  explicit TableFunction(const GeluTable& table) {
    for (int k = 0; k <= kGeluDegree; ++k) {
      lower_[k] = vec_load(table.coefficient[k]);
      upper_[k] = vec_load(table.coefficient[k] + kVecSize);
    }
  }

  Vec operator()(Vec t) const { return (*this)(TablePlace(t)); }

  Vec operator()(const TablePlace& place) const {
    Vec tail = coefficient(kGeluDegree, place.piece);
    SBRRT_UNROLL
    for (int k = kGeluDegree - 1; k >= 0; --k) {
      tail = vec_fma(tail, place.r, coefficient(k, place.piece));
    }
    return _mm512_mask_sub_ps(tail, place.is_above, vec_set(1.0f), tail);
  }

 private:
  Vec coefficient(int k, __m512i piece) const {
    return _mm512_permutex2var_ps(lower_[k], piece, upper_[k]);
  }

  Vec lower_[kGeluDegree + 1], upper_[kGeluDegree + 1];
};

struct NormalCdf : TableFunction {
  NormalCdf() : TableFunction(gelu_cdf_table()) {}
};
struct GeluDerivative : TableFunction {
  GeluDerivative() : TableFunction(gelu_derivative_table()) {}
};

struct CdfAndDerivative {
  NormalCdf cdf;
  GeluDerivative derivative;

  void operator()(Vec t, Vec& cdf_of_t, Vec& derivative_of_t) const {
    const TablePlace place(t);
    cdf_of_t = cdf(place);
    derivative_of_t = derivative(place);
  }
};

#else

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

struct NormalCdf {
  Vec operator()(Vec t) const { return normal_values(t).cdf; }
};

inline Vec derivative_of(Vec t, const NormalValues& n) {
  return vec_fma(t * vec_set(0.398942280f), n.bell, n.cdf);
}

struct GeluDerivative {
  Vec operator()(Vec t) const { return derivative_of(t, normal_values(t)); }
};

struct CdfAndDerivative {
  void operator()(Vec t, Vec& cdf, Vec& derivative) const {
    const NormalValues n = normal_values(t);
    cdf = n.cdf;
    derivative = derivative_of(t, n);
  }
};

#endif

// T is float or, where all rows are whole, bfloat16.
template <typename T>
inline void gelu_forward_rows(const GeluInputs& in, const Rows& out, const GeluBuffers& buffers,
                              int64_t begin, int64_t end) {
  const NormalCdf cdf;
  const float* bias = in.bias;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = open_row<T>(in.x, row, in.width, buffers.x);
    T* y = open_row<T>(out, row, in.width, buffers.out);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec t = vec_load(x + j) + vec_load(bias + j);
      vec_store(y + j, t * cdf(t));
    }
    close_row(out, row, in.width, y);
  }
}

// The same and their tangents.
template <typename T>
inline void gelu_tangent_rows(const GeluInputs& in, const Rows& out, const GeluTangents& tangents,
                              const GeluBuffers& buffers, int64_t begin, int64_t end) {
  const CdfAndDerivative functions;
  const float* bias = in.bias;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t tangent_row = row - tangents.first;
    const T* x = open_row<T>(in.x, row, in.width, buffers.x);
    const T* tx = open_row<T>(tangents.x, tangent_row, in.width, buffers.grad);
    T* y = open_row<T>(out, row, in.width, buffers.out);
    T* ty = open_row<T>(tangents.out, tangent_row, in.width, buffers.out_tangent);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec t = vec_load(x + j) + vec_load(bias + j), tangent = vec_load(tx + j);
      Vec cdf, derivative;
      functions(t, cdf, derivative);
      vec_store(y + j, t * cdf);
      vec_store(ty + j, tangent * derivative);
    }
    close_row(out, row, in.width, y);
    close_row(tangents.out, tangent_row, in.width, ty);
  }
}

inline void gelu_forward(const GeluInputs& in, const Rows& out, const GeluTangents& tangents,
                         const GeluBuffers& buffers, int64_t begin, int64_t end) {
  const bool is_direct = is_whole_bfloat16(in.x, in.width);
  const int64_t first = std::clamp(tangents.first, begin, end);
  const auto run = is_direct ? gelu_forward_rows<at::BFloat16> : gelu_forward_rows<float>;
  run(in, out, buffers, begin, first);
  const auto run_tangents = is_direct && tangents.x.is_bfloat16 ? gelu_tangent_rows<at::BFloat16>
                                                                : gelu_tangent_rows<float>;
  if (first < end) run_tangents(in, out, tangents, buffers, first, end);
}

// out = grad * gelu'(x + bias), and its column sums.
template <typename T, bool kSums>
inline void gelu_grad_rows(const GeluInputs& in, const ConstRows& grad, const Rows& out,
                          float* sums, const GeluBuffers& buffers, int64_t begin, int64_t end) {
  const GeluDerivative derivative;
  const float* bias = in.bias;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = open_row<T>(in.x, row, in.width, buffers.x);
    const T* d = open_row<T>(grad, row, in.width, buffers.grad);
    T* y = open_row<T>(out, row, in.width, buffers.out);
    for (int64_t j = 0; j < in.width; j += kVecSize) {
      const Vec value = vec_load(d + j) * derivative(vec_load(x + j) + vec_load(bias + j));
      vec_store(y + j, value);
      if constexpr (kSums) {
        vec_store(sums + j, row == begin ? value : vec_load(sums + j) + value);
      }
    }
    close_row(out, row, in.width, y);
  }
}

// Backward and JVP, of a gradient or a tangent; sums [padded_width(width)] are null or written.
inline void gelu_grad(const GeluInputs& in, const ConstRows& grad, const Rows& out,
                     float* sums, const GeluBuffers& buffers, int64_t begin, int64_t end) {
  const bool is_direct = is_whole_bfloat16(in.x, in.width) && grad.is_bfloat16;
  const auto run = is_direct ? sums != nullptr ? gelu_grad_rows<at::BFloat16, true>
                                               : gelu_grad_rows<at::BFloat16, false>
                             : sums != nullptr ? gelu_grad_rows<float, true>
                                               : gelu_grad_rows<float, false>;
  run(in, grad, out, sums, buffers, begin, end);
}

}  // namespace sbrrt::SBRRT_ISA
