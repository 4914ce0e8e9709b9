// Rows of either dtype as float32 rows that may be read and written by whole Vecs: the memory
// itself where it is float32 and whole, else a buffer of padded_width(width) floats. Included
// after vec.h.

namespace sbrrt::SBRRT_ISA {

template <typename T>
inline void copy_to_floats(const T* from, int64_t width, float* to) {
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) vec_store(to + j, vec_load(from + j));
  if (j < width) vec_store(to + j, vec_load_head(from + j, width - j));
}

template <typename T>
inline void copy_from_floats(const float* from, int64_t width, T* to) {
  int64_t j = 0;
  for (; j + kVecSize <= width; j += kVecSize) vec_store(to + j, vec_load(from + j));
  if (j < width) vec_store_head(to + j, vec_load(from + j), width - j);
}

// The row's floats, followed by zeros up to a whole Vec, in the buffer.
inline const float* copy_row(const ConstRows& rows, int64_t row, int64_t width, float* buffer) {
  const int64_t start = row * rows.stride;
  if (rows.is_bfloat16) {
    copy_to_floats(static_cast<const at::BFloat16*>(rows.data) + start, width, buffer);
  } else {
    copy_to_floats(static_cast<const float*>(rows.data) + start, width, buffer);
  }
  return buffer;
}

// The same, where they need no copy in their own memory.
SBRRT_INLINE const float* read_row(const ConstRows& rows, int64_t row, int64_t width,
                                   float* buffer) {
  if (rows.is_bfloat16 || width % kVecSize != 0) return copy_row(rows, row, width, buffer);
  return static_cast<const float*>(rows.data) + row * rows.stride;
}

// Where to put the row's floats before finish_row(); whole Vecs may be stored.
inline float* begin_row(const Rows& rows, int64_t row, int64_t width, float* buffer) {
  if (rows.is_bfloat16 || width % kVecSize != 0) return buffer;
  return static_cast<float*>(rows.data) + row * rows.stride;
}

inline void finish_row(const Rows& rows, int64_t row, int64_t width, const float* buffer) {
  const int64_t start = row * rows.stride;
  if (rows.is_bfloat16) {
    copy_from_floats(buffer, width, static_cast<at::BFloat16*>(rows.data) + start);
  } else if (width % kVecSize != 0) {
    copy_from_floats(buffer, width, static_cast<float*>(rows.data) + start);
  }
}

// The same for memory of a known dtype: a bfloat16 row that is whole needs no buffer.
template <typename T>
inline const T* open_row(const ConstRows& rows, int64_t row, int64_t width, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return read_row(rows, row, width, buffer);
  } else {
    return static_cast<const T*>(rows.data) + row * rows.stride;
  }
}

template <typename T>
inline T* open_row(const Rows& rows, int64_t row, int64_t width, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return begin_row(rows, row, width, buffer);
  } else {
    return static_cast<T*>(rows.data) + row * rows.stride;
  }
}

template <typename T>
inline void close_row(const Rows& rows, int64_t row, int64_t width, const T* data) {
  if constexpr (std::is_same_v<T, float>) finish_row(rows, row, width, data);
}

// Whether open_row<at::BFloat16> may be used.
inline bool is_whole_bfloat16(const ConstRows& rows, int64_t width) {
  return rows.is_bfloat16 && width % kVecSize == 0;
}

}  // namespace sbrrt::SBRRT_ISA
