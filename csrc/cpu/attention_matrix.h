// Small dense products in float, and the copies between rows in memory and their operands. Included
// once per instruction set.
#include "cpu/vec.h"

namespace sbrrt::SBRRT_ISA {

constexpr int kTileRows = 4;
#if defined(SBRRT_LANES_AVX512)
constexpr int kTileVectors = 4;  // 16 sums, of 32 registers
#else
constexpr int kTileVectors = 2;  // 8 sums, of 16 registers
#endif

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// A matrix read one element at a time, in any order.
struct Factor {
  const float* data;
  int64_t row, column;  // strides
};

// Terms summed in a row; the sums of longer products are summed in turn, which halves their error.
constexpr int kDepth = 64;

// c [kRows, kVectors vectors] = a [kRows, depth] b [depth, kVectors vectors] + (add ? c : 0)
template <int kRows, int kVectors>
void multiply_tile(Factor a, const float* b, int64_t b_stride, int depth, float* c,
                   int64_t c_stride, bool add) {
  Vec sums[kRows][kVectors];
  SBRRT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = vec_set(0.f);
    }
  }
  for (int k = 0; k < depth; ++k) {
    Vec right[kVectors];
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) right[v] = vec_load(b + v * kVecSize);
    SBRRT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vec left = vec_set(a.data[i * a.row]);
      SBRRT_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] = vec_fma(left, right[v], sums[i][v]);
    }
    a.data += a.column;
    b += b_stride;
  }
  SBRRT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + i * c_stride + v * kVecSize;
      vec_store(out, add ? vec_load(out) + sums[i][v] : sums[i][v]);
    }
  }
}

template <int kVectors>
void multiply_columns(Factor a, const float* b, int64_t b_stride, int rows, int depth, float* c,
                      int64_t c_stride, bool add) {
  // Two independent operations per cycle, each taking four: at least eight sums in flight.
  constexpr int kMany = kVectors == 1 ? 2 * kTileRows : kTileRows;
  for (int i = 0; i < rows;) {
    const Factor part{a.data + i * a.row, a.row, a.column};
    float* out = c + i * c_stride;
    if (i + kMany <= rows) {
      multiply_tile<kMany, kVectors>(part, b, b_stride, depth, out, c_stride, add);
      i += kMany;
    } else {
      multiply_tile<kTileRows, kVectors>(part, b, b_stride, depth, out, c_stride, add);
      i += kTileRows;
    }
  }
}

// One run of at most kDepth terms.
inline void multiply_run(Factor a, const float* b, int64_t b_stride, int rows, int depth,
                         int columns, float* c, int64_t c_stride, bool add) {
  int left = columns / kVecSize;
  for (int num_tiles = (left + kTileVectors - 1) / kTileVectors; num_tiles > 0; --num_tiles) {
    const int num_vectors = (left + num_tiles - 1) / num_tiles;
    switch (num_vectors) {
      case 1: multiply_columns<1>(a, b, b_stride, rows, depth, c, c_stride, add); break;
      case 2: multiply_columns<2>(a, b, b_stride, rows, depth, c, c_stride, add); break;
#if defined(SBRRT_LANES_AVX512)
      case 3: multiply_columns<3>(a, b, b_stride, rows, depth, c, c_stride, add); break;
      case 4: multiply_columns<4>(a, b, b_stride, rows, depth, c, c_stride, add); break;
#endif
    }
    left -= num_vectors;
    b += num_vectors * kVecSize;
    c += num_vectors * kVecSize;
  }
}

// c [rows, columns] = a [rows, depth] b [depth, columns] + (add ? c : 0); rows is rounded up to a
// multiple of kTileRows, for which a and c have room; columns is a multiple of kVecSize.
inline void multiply(Factor a, const float* b, int64_t b_stride, int rows, int depth, int columns,
                     float* c, int64_t c_stride, bool add = false) {
  for (int k = 0; k < depth; k += kDepth) {
    multiply_run({a.data + k * a.column, a.row, a.column}, b + k * b_stride, b_stride, rows,
                 std::min(kDepth, depth - k), columns, c, c_stride, add || k > 0);
  }
}

// (a0, b0, a1, b1, ...): the lower and the upper half of it.
#if defined(SBRRT_LANES_AVX512)
inline void interleave(Vec a, Vec b, Vec& lower, Vec& upper) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  lower = _mm512_permutex2var_ps(a, first, b);
  upper = _mm512_permutex2var_ps(a, second, b);
}
#elif defined(SBRRT_LANES_AVX2)
inline void interleave(Vec a, Vec b, Vec& lower, Vec& upper) {
  const Vec even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
  lower = _mm256_permute2f128_ps(even, odd, 0x20);
  upper = _mm256_permute2f128_ps(even, odd, 0x31);
}
#else
inline void interleave(Vec, Vec, Vec&, Vec&) {}
#endif

// Lane j of rows[i] becomes lane i of rows[j]: one perfect shuffle per bit of the lane's number.
inline void transpose(Vec (&rows)[kVecSize]) {
  SBRRT_UNROLL
  for (int stage = 1; stage < kVecSize; stage *= 2) {
    Vec shuffled[kVecSize];
    SBRRT_UNROLL
    for (int i = 0; i < kVecSize / 2; ++i) {
      interleave(rows[i], rows[i + kVecSize / 2], shuffled[2 * i], shuffled[2 * i + 1]);
    }
    SBRRT_UNROLL
    for (int i = 0; i < kVecSize; ++i) rows[i] = shuffled[i];
  }
}

// packed [padded, width] = rows, zeros below num_rows
template <typename T>
void pack_rows(RowView<const T> rows, int num_rows, int padded, int width, float* packed) {
  for (int i = 0; i < num_rows; ++i) {
    const T* row = rows.data + i * rows.stride;
    for (int j = 0; j < width; j += kVecSize) {
      vec_store(packed + i * width + j, vec_load(row + j));
    }
  }
  std::fill(packed + num_rows * width, packed + padded * width, 0.f);
}

// packed [width, padded] = rows transposed, zeros right of num_rows; padded is a multiple of
// kVecSize.
template <typename T>
void pack_columns(RowView<const T> rows, int num_rows, int padded, int width, float* packed) {
  for (int i = 0; i < padded; i += kVecSize) {
    const int count = num_rows - i;
    for (int j = 0; j < width; j += kVecSize) {
      Vec tile[kVecSize];
      SBRRT_UNROLL
      for (int r = 0; r < kVecSize; ++r) {
        tile[r] = r < count ? vec_load(rows.data + (i + r) * rows.stride + j) : vec_set(0.f);
      }
      transpose(tile);
      SBRRT_UNROLL
      for (int r = 0; r < kVecSize; ++r) vec_store(packed + (j + r) * padded + i, tile[r]);
    }
  }
}

// rows [num_rows, width] = scale * packed
template <typename T>
void unpack_rows(const float* packed, int num_rows, int width, float scale, RowView<T> rows) {
  const Vec factor = vec_set(scale);
  for (int i = 0; i < num_rows; ++i) {
    T* row = rows.data + i * rows.stride;
    for (int j = 0; j < width; j += kVecSize) {
      vec_store(row + j, vec_load(packed + i * width + j) * factor);
    }
  }
}

}  // namespace sbrrt::SBRRT_ISA
