// Small dense products in float, and the copies between rows in memory and their operands. Included
// once per instruction set.
#include "cpu/vec.h"

namespace sbrrt::SBRRT_ISA {

// A tile's sums stay in registers: 24 of 32, 12 of 16.
#if defined(SBRRT_LANES_AVX512)
constexpr int kTileRows = 8, kTileVectors = 3;
#elif defined(SBRRT_LANES_AVX2)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// A product's left factor, read one element at a time, in any order; what it meets of a row of the
// right one; and how the two are multiplied. PairFactor of attention_pairs.h is another.
struct Factor {
  using Right = float;
  using Terms = Vec;
  static constexpr int kTerms = 1;  // of a sum that are read at a time

  const float* data;
  int64_t row, column;  // strides

  static Terms load(const Right* b) { return vec_load(b); }
  static Terms spread(const float* a) { return vec_set(*a); }
  static Vec add_product(Terms left, Terms right, Vec sum) { return vec_fma(left, right, sum); }
};

// Terms summed in a row; the sums of longer products are summed in turn, which halves their error.
constexpr int kDepth = 64;

// c [kRows, kVectors vectors] = a [kRows, depth] b [depth, kVectors vectors] + (add ? c : 0)
template <int kRows, int kVectors, typename Left>
void multiply_tile(Left a, const typename Left::Right* b, int64_t b_stride, int depth, float* c,
                   int64_t c_stride, bool add) {
  using Terms = typename Left::Terms;
  Vec sums[kRows][kVectors];
  SBRRT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = vec_set(0.f);
    }
  }
  for (int k = 0; k < depth; ++k) {
    Terms right[kVectors];
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) right[v] = Left::load(b + v * kVecSize);
    SBRRT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Terms left = Left::spread(a.data + i * a.row);
      SBRRT_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = Left::add_product(left, right[v], sums[i][v]);
      }
    }
    a.data += a.column;
    b += b_stride;
  }
  SBRRT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SBRRT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + v * kVecSize;
      vec_store(out, add ? vec_load(out) + sums[i][v] : sums[i][v]);
    }
    c += c_stride;
  }
}

template <typename Left>
using Tile = void (*)(Left, const typename Left::Right*, int64_t, int, float*, int64_t, bool);

template <int kVectors, typename Left, int... kIndex>
constexpr std::array<Tile<Left>, kTileRows> tiles(std::integer_sequence<int, kIndex...>) {
  return {&multiply_tile<kIndex + 1, kVectors, Left>...};
}

// c [rows, kVectors vectors] = a [rows, depth] b [depth, kVectors vectors] + (add ? c : 0), in one
// run of terms. Tiles share the rows evenly: a small one is too few independent sums to keep the
// processor busy.
template <int kVectors, typename Left>
void multiply_panel(Left a, const typename Left::Right* b, int64_t b_stride, int rows, int depth,
                    float* c, int64_t c_stride, bool add) {
  static constexpr auto kTiles =
      tiles<kVectors, Left>(std::make_integer_sequence<int, kTileRows>{});
  const int num_tiles = (rows + kTileRows - 1) / kTileRows;
  const int least = rows / num_tiles, num_larger = rows % num_tiles;
  for (int t = 0; t < num_tiles; ++t) {
    const int tile_rows = least + (t < num_larger);
    kTiles[tile_rows - 1](a, b, b_stride, depth, c, c_stride, add);
    a.data += tile_rows * a.row;
    c += tile_rows * c_stride;
  }
}

// c [rows, kWidth] = a [rows, depth] b [depth, kWidth] + (add ? c : 0); the rows of b are dense.
template <int kWidth>
void multiply(Factor a, Factor b, int rows, int depth, float* c, int64_t c_stride, bool add) {
  constexpr int kVectors = 2, kPanel = kVectors * kVecSize;  // at 32 columns AVX-512 has no more
  for (int k = 0; k < depth; k += kDepth) {
    const Factor run{a.data + k * a.column, a.row, a.column};
    for (int j = 0; j < kWidth; j += kPanel) {
      multiply_panel<kVectors>(run, b.data + k * b.row + j, b.row, rows,
                               std::min(kDepth, depth - k), c + j, c_stride, add || k > 0);
    }
  }
}

// c [rows, columns] = a [rows, kWidth] b [kWidth, columns] + (add ? c : 0), columns being whole
// vectors; b and c have the same stride.
template <int kWidth, typename Left>
void multiply_columns(Left a, const typename Left::Right* b, int64_t stride, int rows, int columns,
                      float* c, bool add = false) {
  static_assert(kWidth <= kDepth);
  constexpr int kSteps = kWidth / Left::kTerms;
  int left = columns / kVecSize;
  for (int num_panels = (left + kTileVectors - 1) / kTileVectors; num_panels > 0; --num_panels) {
    const int num_vectors = (left + num_panels - 1) / num_panels;
    switch (num_vectors) {
      case 1: multiply_panel<1>(a, b, stride, rows, kSteps, c, stride, add); break;
      case 2: multiply_panel<2>(a, b, stride, rows, kSteps, c, stride, add); break;
      default: multiply_panel<kTileVectors>(a, b, stride, rows, kSteps, c, stride, add);
    }
    left -= num_vectors;
    b += num_vectors * kVecSize;
    c += num_vectors * kVecSize;
  }
}

// interleave: (a0, b0, a1, b1, ...), its lower and its upper half. first, second_of_pair: of each
// lane's two bfloat16, as float.
#if defined(SBRRT_LANES_AVX512)
inline void interleave(Vec a, Vec b, Vec& lower, Vec& upper) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  lower = _mm512_permutex2var_ps(a, first, b);
  upper = _mm512_permutex2var_ps(a, second, b);
}
inline Vec first_of_pair(Vec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
}
inline Vec second_of_pair(Vec x) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}
#elif defined(SBRRT_LANES_AVX2)
inline void interleave(Vec a, Vec b, Vec& lower, Vec& upper) {
  const Vec even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
  lower = _mm256_permute2f128_ps(even, odd, 0x20);
  upper = _mm256_permute2f128_ps(even, odd, 0x31);
}
inline Vec first_of_pair(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
}
inline Vec second_of_pair(Vec x) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}
#endif

#if defined(SBRRT_LANES_AVX512) || defined(SBRRT_LANES_AVX2)

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

// A vector of four-byte lanes from each of kVecSize rows, transposed; zeros below num_rows.
inline void load_columns(const void* first, int64_t stride_bytes, int num_rows,
                         Vec (&columns)[kVecSize]) {
  alignas(64) static constexpr float kZeros[kVecSize] = {};
  const char* row = static_cast<const char*>(first);
  SBRRT_UNROLL
  for (int r = 0; r < kVecSize; ++r) {
    columns[r] = vec_load(r < num_rows ? reinterpret_cast<const float*>(row) : kZeros);
    row += stride_bytes;
  }
  transpose(columns);
}

// packed [kWidth, stride] = rows transposed, zeros right of num_rows up to a whole vector
template <int kWidth>
const float* pack_columns(RowView<const float> rows, int num_rows, int stride,
                          Buffer<float>& buffer) {
  float* packed = buffer.of(kWidth * stride);
  for (int i = 0; i < num_rows; i += kVecSize) {
    for (int j = 0; j < kWidth; j += kVecSize) {
      Vec columns[kVecSize];
      load_columns(rows.data + i * rows.stride + j, rows.stride * 4, num_rows - i, columns);
      SBRRT_UNROLL
      for (int r = 0; r < kVecSize; ++r) vec_store(packed + (j + r) * stride + i, columns[r]);
    }
  }
  return packed;
}

template <int kWidth>
const float* pack_columns(RowView<const at::BFloat16> rows, int num_rows, int stride,
                          Buffer<float>& buffer) {
  float* packed = buffer.of(kWidth * stride);
  for (int i = 0; i < num_rows; i += kVecSize) {
    for (int j = 0; j < kWidth; j += 2 * kVecSize) {
      Vec pairs[kVecSize];
      load_columns(rows.data + i * rows.stride + j, rows.stride * 2, num_rows - i, pairs);
      SBRRT_UNROLL
      for (int r = 0; r < kVecSize; ++r) {
        float* column = packed + (j + 2 * r) * stride + i;
        vec_store(column, first_of_pair(pairs[r]));
        vec_store(column + stride, second_of_pair(pairs[r]));
      }
    }
  }
  return packed;
}

#else

template <int kWidth, typename T>
const float* pack_columns(RowView<const T> rows, int num_rows, int stride, Buffer<float>& buffer) {
  float* packed = buffer.of(kWidth * stride);
  for (int i = 0; i < num_rows; ++i) {
    const T* row = rows.data + i * rows.stride;
    for (int j = 0; j < kWidth; ++j) packed[j * stride + i] = vec_load(row + j);
  }
  return packed;
}

#endif

// Floats of this many rows are read and written where they lie; more of them, a constant distance
// apart, would evict each other from the cache.
constexpr int kMostInPlace = 128;

// packed [num_rows, kWidth] = rows
template <int kWidth, typename T>
Factor pack_rows(RowView<const T> rows, int num_rows, Buffer<float>& buffer) {
  float* packed = buffer.of(num_rows * kWidth);
  for (int i = 0; i < num_rows; ++i) {
    SBRRT_UNROLL
    for (int j = 0; j < kWidth; j += kVecSize) {
      vec_store(packed + i * kWidth + j, vec_load(rows.data + i * rows.stride + j));
    }
  }
  return {packed, kWidth, 1};
}

// The same without a copy where there need be none.
template <int kWidth, typename T>
Factor factor(RowView<const T> rows, int num_rows, Buffer<float>& buffer) {
  if constexpr (std::is_same_v<T, float>) {
    if (num_rows <= kMostInPlace) return {rows.data, rows.stride, 1};
  }
  return pack_rows<kWidth>(rows, num_rows, buffer);
}

// A product's result [num_rows, kWidth]: summed in place, or in a buffer and then copied.
template <int kWidth, typename T>
class Result {
 public:
  Result(RowView<T> rows, int num_rows, Buffer<float>& buffer) : rows_(rows), num_rows_(num_rows) {
    if constexpr (std::is_same_v<T, float>) {
      if (num_rows <= kMostInPlace) {
        sums_ = rows;
        fetch();
        return;
      }
    }
    sums_ = {buffer.of(num_rows * kWidth), kWidth};
  }

  // += a [num_rows, depth] b [depth, kWidth], or = where it is the first.
  void add(Factor a, Factor b, int depth, bool is_first) const {
    multiply<kWidth>(a, b, num_rows_, depth, sums_.data, sums_.stride, !is_first);
  }

  void finish() const {
    if (static_cast<void*>(sums_.data) == rows_.data) return;
    for (int i = 0; i < num_rows_; ++i) {
      SBRRT_UNROLL
      for (int j = 0; j < kWidth; j += kVecSize) {
        vec_store(rows_.data + i * rows_.stride + j, vec_load(sums_.data + i * kWidth + j));
      }
    }
  }

 private:
  // A tile's stores would wait for the memory.
  void fetch() const {
    for (int i = 0; i < num_rows_; ++i) {
      SBRRT_UNROLL
      for (int j = 0; j < kWidth; j += 16) __builtin_prefetch(rows_.data + i * rows_.stride + j, 1);
    }
  }

  RowView<T> rows_;
  RowView<float> sums_;
  int num_rows_;
};

}  // namespace sbrrt::SBRRT_ISA
