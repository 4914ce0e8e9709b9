// From what is known when an op is called to template arguments; and when rows can be read 16 bytes
// at a time.
#pragma once

#include <initializer_list>

#include "cuda/common/device.cuh"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

template <typename T>
struct TypeTag {
  using type = T;
};

// run(TypeTag<T>) for the type of a dtype.
template <typename F>
cudaError_t with_dtype(Dtype dtype, F run) {
  switch (dtype) {
    case Dtype::kFloat32: return run(TypeTag<float>{});
    case Dtype::kFloat16: return run(TypeTag<__half>{});
    case Dtype::kBFloat16: return run(TypeTag<__nv_bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Whether N elements from a multiple of N on can be moved at once, in each row. No data is no rows.
inline bool is_whole(ConstRows rows, int n) {
  return rows.data == nullptr || (is_aligned(rows.data) && rows.stride % n == 0);
}
inline bool is_whole(Rows rows, int n) { return is_whole(ConstRows{rows.data, rows.stride}, n); }

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (!is_aligned(pointer)) return false;
  }
  return true;
}

}  // namespace sbrrt::cuda
