// One group of tokens (a token or a sequence) of an ascent step: norms, then the move and the
// projection. Included once per instruction set.
#include "cpu/vec.h"

namespace sbrrt::SBRRT_ISA {

// x * power * factor without overflow or underflow between; power is a power of two.
struct AscendScale {
  float power, factor;
};

// length / size for a size > 0 of any magnitude.
inline AscendScale ascend_scale(double length, double size) {
  const int exponent = std::clamp(std::ilogb(size), -120, 120);
  return {std::ldexp(1.0f, -exponent), static_cast<float>(length / std::ldexp(size, -exponent))};
}

template <typename T>
inline Vec ascend_load(const T* p, int64_t count) {
  return count == kVecSize ? vec_load(p) : vec_load_head(p, count);
}

// take(x, lane) for each Vec of a row, in lanes 0 ... 3 whose results do not wait for each other;
// row(j, count) gives elements j ... j + count - 1.
template <typename Row, typename Take>
inline void ascend_each_vec(const Row& row, int64_t width, const Take& take) {
  int64_t j = 0;
  for (; j + 4 * kVecSize <= width; j += 4 * kVecSize) {
    SBRRT_UNROLL
    for (int lane = 0; lane < 4; ++lane) take(row(j + lane * kVecSize, kVecSize), lane);
  }
  for (; j + kVecSize <= width; j += kVecSize) take(row(j, kVecSize), 0);
  if (j < width) take(row(j, width - j), 0);
}

template <typename Row>
inline float ascend_row_largest(const Row& row, int64_t width) {
  Vec most[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
  ascend_each_vec(row, width, [&](Vec x, int lane) {
    most[lane] = vec_max(vec_abs(x), most[lane]);
  });
  for (int lane = 1; lane < 4; ++lane) {  // GCC 12 warns of an uninitialised value in vec_max here
    most[0] = vec_where_less(most[0], most[lane], most[lane], most[0]);
  }
  return vec_largest(most[0]);
}

template <typename Row>
inline float ascend_row_squares(const Row& row, int64_t width, float power) {
  Vec sums[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
  ascend_each_vec(row, width, [&](Vec x, int lane) {
    x = x * vec_set(power);
    sums[lane] = vec_fma(x, x, sums[lane]);
  });
  return vec_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The sup-norm of a row, or its sum of squares. Squares that leave the range of a float are summed
// again, scaled by the row's largest entry.
template <typename Row>
inline double ascend_row_size(bool is_sup, const Row& row, int64_t width) {
  if (is_sup) return ascend_row_largest(row, width);
  const float sum = ascend_row_squares(row, width, 1.0f);
  if (sum > 1e-24f && sum < 1e36f) return sum;
  const float largest = ascend_row_largest(row, width);
  if (!(largest > 0) || !std::isfinite(largest)) return sum;
  const int exponent = std::clamp(std::ilogb(largest), -120, 120);
  const double scaled = ascend_row_squares(row, width, std::ldexp(1.0f, -exponent));
  return std::ldexp(scaled, 2 * exponent);
}

// The norm over a group's kept tokens; row_of(token) gives the row that is measured.
template <typename RowOf>
inline double ascend_group_norm(const AscendOptions& options, const int64_t* tokens,
                                int64_t num_tokens, int64_t width, const RowOf& row_of) {
  double size = 0;
  for (int64_t i = 0; i < num_tokens; ++i) {
    const double row = ascend_row_size(options.is_sup, row_of(tokens[i]), width);
    size = options.is_sup ? std::max(size, row) : size + row;
  }
  return options.is_sup ? size : std::sqrt(size);
}

inline Vec ascend_projected(const AscendOptions& options, const AscendScale& scale, Vec moved) {
  const Vec radius = vec_set(options.radius), zero = vec_set(0);
  if (options.is_clamp) return vec_min(vec_max(moved, zero - radius), radius);
  if (options.is_sign) {
    return vec_where_less(zero, moved, radius,
                          vec_where_less(moved, zero, zero - radius, zero));
  }
  return moved * vec_set(scale.power) * vec_set(scale.factor);
}

template <typename Row, typename D>
inline void ascend_write_row(const AscendOptions& options, const AscendScale& scale,
                             const Row& row, int64_t width, D* out) {
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) {
    vec_store(out + j, ascend_projected(options, scale, row(j, kVecSize)));
  }
  if (j < width) {
    vec_store_head(out + j, ascend_projected(options, scale, row(j, width - j)), width - j);
  }
}

// The rows of a group, each as a function of (j, count), projected; `norm` is theirs where known.
template <typename D, typename G, typename RowOf>
inline void ascend_project(const AscendOptions& options, const AscendRows<D, G>& rows,
                           const int64_t* tokens, int64_t num_tokens, const RowOf& row_of,
                           double norm = -1) {
  AscendScale scale{1.0f, 1.0f};
  if (!options.is_clamp && !options.is_sign) {
    if (norm < 0) norm = ascend_group_norm(options, tokens, num_tokens, rows.width, row_of);
    const bool is_limit = options.is_ball && !options.is_infinite;
    if (norm > (is_limit ? options.radius : 0.0)) scale = ascend_scale(options.radius, norm);
  }
  for (int64_t i = 0; i < num_tokens; ++i) {
    ascend_write_row(options, scale, row_of(tokens[i]), rows.width,
                     rows.out + tokens[i] * rows.width);
  }
}

// How far a group moves in a step of finite size, given its gradient's norm where that is needed.
inline AscendScale ascend_step(const AscendOptions& options, double size) {
  if (!options.normalize_gradient) return {1.0f, static_cast<float>(options.step_size)};
  return size > 0 ? ascend_scale(options.step_size, size) : AscendScale{1.0f, 0.0f};
}

// tokens [num_tokens] are the group's kept ones. An infinite step leaves the gradient's direction,
// or the perturbation's where the gradient is zero.
template <typename D, typename G>
void ascend_group(const AscendOptions& options, const AscendRows<D, G>& rows,
                  const int64_t* tokens, int64_t num_tokens) {
  const auto gradient_of = [&](int64_t token) {
    const G* gradient = rows.gradient + token * rows.gradient_stride;
    return [=](int64_t j, int64_t count) { return ascend_load(gradient + j, count); };
  };
  const auto delta_of = [&](int64_t token) {
    const D* delta = rows.delta + token * rows.delta_stride;
    return [=](int64_t j, int64_t count) { return ascend_load(delta + j, count); };
  };
  double size = 0;
  if (options.is_infinite || options.normalize_gradient) {
    size = ascend_group_norm(options, tokens, num_tokens, rows.width, gradient_of);
  }
  if (options.is_infinite) {
    if (size > 0) return ascend_project(options, rows, tokens, num_tokens, gradient_of, size);
    return ascend_project(options, rows, tokens, num_tokens, delta_of);
  }
  const AscendScale step = ascend_step(options, size);
  ascend_project(options, rows, tokens, num_tokens, [&](int64_t token) {
    const auto delta = delta_of(token);
    const auto gradient = gradient_of(token);
    return [=](int64_t j, int64_t count) {
      return vec_fma(gradient(j, count) * vec_set(step.power), vec_set(step.factor),
                     delta(j, count));
    };
  });
}

}  // namespace sbrrt::SBRRT_ISA
