// Small dense products of bfloat16 factors with sums in float, and the copies between rows in
// memory and their operands. An instruction takes two terms of a sum at a time: a Pair is two
// bfloat16 that lie together. Included for the instruction set that has it, after
// attention_matrix.h.

namespace sbrrt::SBRRT_ISA {

// A matrix of pairs of neighbouring terms, read one at a time.
struct PairFactor {
  using Right = Pair;
  using Terms = __m512bh;
  static constexpr int kTerms = 2;

  const at::BFloat16* data;
  int64_t row, column;  // elements from row to row and from pair to pair

  static Terms load(const Pair* b) { return (Terms)_mm512_loadu_si512(b); }
  static Terms spread(const at::BFloat16* a) {
    int pair;
    std::memcpy(&pair, a, sizeof(pair));
    return (Terms)_mm512_set1_epi32(pair);
  }
  static Vec add_product(Terms left, Terms right, Vec sum) {
    return _mm512_dpbf16_ps(sum, left, right);
  }
};

// Numbers of 16-bit lanes: 0, second, 1, second + 1, 2 ...
inline __m512i alternate(int second) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i offset = _mm512_set1_epi32(second);
  return _mm512_or_si512(first, _mm512_slli_epi32(_mm512_add_epi32(first, offset), 16));
}

// packed [kWidth / 2, stride] = pairs of the rows' features, transposed; zeros right of num_rows up
// to a whole vector
template <int kWidth>
const Pair* pack_pair_columns(RowView<const at::BFloat16> rows, int num_rows, int stride,
                              Buffer<Pair>& buffer) {
  Pair* packed = buffer.of(kWidth / 2 * stride);
  for (int i = 0; i < num_rows; i += kVecSize) {
    for (int j = 0; j < kWidth; j += 2 * kVecSize) {
      Vec pairs[kVecSize];
      load_columns(rows.data + i * rows.stride + j, rows.stride * 2, num_rows - i, pairs);
      SBRRT_UNROLL
      for (int r = 0; r < kVecSize; ++r) {
        _mm512_storeu_si512(packed + (j / 2 + r) * stride + i, _mm512_castps_si512(pairs[r]));
      }
    }
  }
  return packed;
}

// packed [num_rows / 2 rounded up, kWidth] = pairs of two rows, the last one's partner being zero
template <int kWidth>
const Pair* pack_pair_rows(RowView<const at::BFloat16> rows, int num_rows, Buffer<Pair>& buffer) {
  Pair* packed = buffer.of((num_rows + 1) / 2 * kWidth);
  const __m512i lower = alternate(32), upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
  for (int i = 0; i < num_rows; i += 2) {
    for (int j = 0; j < kWidth; j += 2 * kVecSize) {
      const at::BFloat16* row = rows.data + i * rows.stride + j;
      const __m512i first = _mm512_loadu_si512(row);
      const __m512i second =
          i + 1 < num_rows ? _mm512_loadu_si512(row + rows.stride) : _mm512_setzero_si512();
      Pair* out = packed + i / 2 * kWidth + j;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(first, lower, second));
      _mm512_storeu_si512(out + kVecSize, _mm512_permutex2var_epi16(first, upper, second));
    }
  }
  return packed;
}

// The rows where they lie, or a dense copy of many (kMostInPlace).
template <int kWidth>
PairFactor pair_factor(RowView<const at::BFloat16> rows, int num_rows,
                       Buffer<at::BFloat16>& buffer) {
  if (num_rows <= kMostInPlace) return {rows.data, rows.stride, 2};
  at::BFloat16* packed = buffer.of(num_rows * kWidth);
  for (int i = 0; i < num_rows; ++i) {
    std::memcpy(packed + i * kWidth, rows.data + i * rows.stride, kWidth * sizeof(at::BFloat16));
  }
  return {packed, kWidth, 2};
}

// A product's result [num_rows, kWidth], summed in a buffer of floats.
template <int kWidth>
class PairResult {
 public:
  PairResult(int num_rows, Buffer<float>& buffer)
      : sums_(buffer.of(num_rows * kWidth)), num_rows_(num_rows) {}

  // += a [num_rows, depth] b [depth, kWidth], or = where it is the first; the depth in pairs.
  void add(PairFactor a, const Pair* b, int depth, bool is_first) const {
    constexpr int kVectors = 2;
    for (int j = 0; j < kWidth; j += kVectors * kVecSize) {
      multiply_panel<kVectors>(a, b + j, kWidth, num_rows_, depth, sums_ + j, kWidth, !is_first);
    }
  }

  // rows = the result times a number, or each row times its own
  void store(float scale, RowView<at::BFloat16> rows) const {
    for (int i = 0; i < num_rows_; ++i) store_row(i, scale, rows);
  }
  void store(const float* scales, RowView<at::BFloat16> rows) const {
    for (int i = 0; i < num_rows_; ++i) store_row(i, scales[i], rows);
  }

 private:
  void store_row(int i, float scale, RowView<at::BFloat16> rows) const {
    SBRRT_UNROLL
    for (int j = 0; j < kWidth; j += kVecSize) {
      vec_store(rows.data + i * rows.stride + j, vec_load(sums_ + i * kWidth + j) * vec_set(scale));
    }
  }

  float* sums_;
  int num_rows_;
};

}  // namespace sbrrt::SBRRT_ISA
