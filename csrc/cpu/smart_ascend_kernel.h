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

// moved = keep * delta + gradient * scale; keep is 0 or 1.
struct AscendMove {
  float keep;
  AscendScale scale;
};

template <typename T>
inline Vec ascend_load(const T* p, int64_t count) {
  return count == kVecSize ? vec_load(p) : vec_load_head(p, count);
}

template <typename D, typename G>
inline Vec ascend_moved(const AscendMove& move, const D* delta, const G* gradient, int64_t count) {
  const Vec along = ascend_load(gradient, count) * vec_set(move.scale.power);
  return vec_fma(along, vec_set(move.scale.factor),
                 vec_set(move.keep) * ascend_load(delta, count));
}

template <typename Row>
inline float ascend_row_largest(const Row& row, int64_t width) {
  Vec largest = vec_set(0);
  for (int64_t j = 0; j < width; j += kVecSize) {
    largest = vec_max(vec_abs(row(j, std::min<int64_t>(kVecSize, width - j))), largest);
  }
  return vec_largest(largest);
}

template <typename Row>
inline float ascend_row_squares(const Row& row, int64_t width, float power) {
  Vec sum = vec_set(0);
  for (int64_t j = 0; j < width; j += kVecSize) {
    const Vec x = row(j, std::min<int64_t>(kVecSize, width - j)) * vec_set(power);
    sum = vec_fma(x, x, sum);
  }
  return vec_sum(sum);
}

// The sup-norm of a row, or its sum of squares; row(j, count) gives elements j ... j + count - 1.
// Squares that leave the range of a float are summed again, scaled by the row's largest entry.
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

template <typename D, typename G>
inline void ascend_write_row(const AscendOptions& options, const AscendMove& move,
                             const AscendScale& scale, const D* delta, const G* gradient,
                             int64_t width, D* out) {
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) {
    const Vec moved = ascend_moved(move, delta + j, gradient + j, kVecSize);
    vec_store(out + j, ascend_projected(options, scale, moved));
  }
  if (j < width) {
    const Vec moved = ascend_moved(move, delta + j, gradient + j, width - j);
    vec_store_head(out + j, ascend_projected(options, scale, moved), width - j);
  }
}

// How far a group moves, given its gradient's norm where that is needed.
inline AscendMove ascend_move(const AscendOptions& options, double size) {
  const AscendMove stay{1.0f, {1.0f, 0.0f}};
  if (options.is_infinite) return size > 0 ? AscendMove{0.0f, ascend_scale(1.0, size)} : stay;
  if (!options.normalize_gradient) {
    return {1.0f, {1.0f, static_cast<float>(options.step_size)}};
  }
  return size > 0 ? AscendMove{1.0f, ascend_scale(options.step_size, size)} : stay;
}

// tokens [num_tokens] are the group's kept ones.
template <typename D, typename G>
void ascend_group(const AscendOptions& options, const AscendRows<D, G>& rows,
                  const int64_t* tokens, int64_t num_tokens) {
  double size = 0;
  if (options.is_infinite || options.normalize_gradient) {
    size = ascend_group_norm(options, tokens, num_tokens, rows.width, [&](int64_t token) {
      const G* gradient = rows.gradient + token * rows.gradient_stride;
      return [=](int64_t j, int64_t count) { return ascend_load(gradient + j, count); };
    });
  }
  const AscendMove move = ascend_move(options, size);
  AscendScale scale{1.0f, 1.0f};
  if (!options.is_clamp && !options.is_sign) {
    const double norm =
        ascend_group_norm(options, tokens, num_tokens, rows.width, [&](int64_t token) {
          const D* delta = rows.delta + token * rows.delta_stride;
          const G* gradient = rows.gradient + token * rows.gradient_stride;
          return [=](int64_t j, int64_t count) {
            return ascend_moved(move, delta + j, gradient + j, count);
          };
        });
    const bool is_limit = options.is_ball && !options.is_infinite;
    if (norm > (is_limit ? options.radius : 0.0)) scale = ascend_scale(options.radius, norm);
  }
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t token = tokens[i];
    ascend_write_row(options, move, scale, rows.delta + token * rows.delta_stride,
                     rows.gradient + token * rows.gradient_stride, rows.width,
                     rows.out + token * rows.width);
  }
}

}  // namespace sbrrt::SBRRT_ISA
