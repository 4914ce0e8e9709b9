// From what is known when an op is called to template arguments; and when rows can be read 16 bytes
// at a time.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "cuda/common/device.cuh"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

template <typename T>
struct TypeTag {
  using type = T;
};

// run(TypeTag<T>) for the type of a dtype.
template <typename F>
cudaError_t with_dtype(ElementType dtype, F run) {
  switch (dtype) {
    case ElementType::kFloat: return run(TypeTag<float>{});
    case ElementType::kHalf: return run(TypeTag<__half>{});
    case ElementType::kBFloat16: return run(TypeTag<__nv_bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

// run(std::bool_constant<value>) for a bool.
template <typename F>
cudaError_t with_bool(bool value, F run) {
  return value ? run(std::true_type{}) : run(std::false_type{});
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
