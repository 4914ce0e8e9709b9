// Phi(-a) and gelu'(-a) = Phi(-a) - a phi(a) for a >= 0 as polynomials on short intervals, for
// instruction sets that look up many coefficients at once. See docs/math/gelu.md.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace sbrrt {

constexpr int kGeluPieces = 32;  // the last one, where both functions are as good as 0, is 0
constexpr int kGeluDegree = 4;
constexpr double kGeluPiecesPerUnit = 5;

// Piece n takes a in [n - 1/2, n + 1/2] / kGeluPiecesPerUnit; coefficient[k] goes with r^k,
// r = a * kGeluPiecesPerUnit - n.
struct alignas(64) GeluTable {
  float coefficient[kGeluDegree + 1][kGeluPieces];
};

using GeluCoefficients = std::array<double, kGeluDegree + 1>;

// The polynomial in r through f at Chebyshev's nodes of [-1/2, 1/2], by Newton's differences.
template <typename F>
GeluCoefficients gelu_interpolate(F f) {
  GeluCoefficients nodes, differences, result{};
  for (int k = 0; k <= kGeluDegree; ++k) {
    nodes[k] = 0.5 * std::cos(M_PI * (2 * k + 1) / (2 * kGeluDegree + 2));
    differences[k] = f(nodes[k]);
  }
  for (int order = 1; order <= kGeluDegree; ++order) {
    for (int k = kGeluDegree; k >= order; --k) {
      differences[k] = (differences[k] - differences[k - 1]) / (nodes[k] - nodes[k - order]);
    }
  }
  for (int k = kGeluDegree; k >= 0; --k) {  // result = result (r - nodes[k]) + differences[k]
    for (int i = kGeluDegree; i > 0; --i) result[i] = result[i - 1] - nodes[k] * result[i];
    result[0] = differences[k] - nodes[k] * result[0];
  }
  return result;
}

template <typename F>
GeluTable gelu_table(F f) {
  GeluTable table{};
  for (int piece = 0; piece < kGeluPieces - 1; ++piece) {
    const auto coefficients =
        gelu_interpolate([&](double r) { return f((piece + r) / kGeluPiecesPerUnit); });
    for (int k = 0; k <= kGeluDegree; ++k) {
      table.coefficient[k][piece] = static_cast<float>(coefficients[k]);
    }
  }
  return table;
}

inline const GeluTable& gelu_cdf_table() {
  static const GeluTable table = gelu_table([](double a) { return 0.5 * std::erfc(a * M_SQRT1_2); });
  return table;
}

inline const GeluTable& gelu_derivative_table() {
  static const GeluTable table = gelu_table([](double a) {
    const double density = std::exp(-0.5 * a * a) * 0.5 * M_SQRT1_2 * M_2_SQRTPI;
    return 0.5 * std::erfc(a * M_SQRT1_2) - a * density;
  });
  return table;
}

}  // namespace sbrrt
