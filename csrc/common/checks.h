// Checks of tensor arguments. Each message names the op, the argument, what it must be and what
// came; each runs before any element is read.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>

#include "common/philox.h"

namespace sbrrt {

inline std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor";
  return c10::str(tensor.scalar_type(), " ", tensor.sizes(), ", ", tensor.layout(), ", on ",
                  tensor.device());
}

// `shape` describes the sizes that `has_shape` tested, for the message alone.
inline void check_tensor(const char* op, const char* argument, const at::Tensor& tensor,
                         at::ScalarType dtype, const char* shape, bool has_shape) {
  TORCH_CHECK_TYPE(tensor.defined() && tensor.scalar_type() == dtype, "sbrrt::", op, ": ",
                   argument, " must have dtype ", dtype, ", got ", describe(tensor));
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && has_shape, "sbrrt::", op, ": ", argument,
                    " must be a dense tensor of shape ", shape, ", got ", describe(tensor));
}

inline void check_device(const char* op, const char* argument, const at::Tensor& tensor,
                         at::DeviceType device) {
  TORCH_CHECK_VALUE(tensor.device().type() == device, "sbrrt::", op, ": ", argument,
                    " must be on ", device, ", got ", describe(tensor));
}

inline void check_probability(const char* op, double p) {
  TORCH_CHECK_VALUE(p >= 0 && p < 1, "sbrrt::", op, ": p must be in [0, 1), got ", p);
}

inline void check_uint32(const char* op, const char* argument, int64_t value) {
  TORCH_CHECK_VALUE(value >= 0 && value <= UINT32_MAX, "sbrrt::", op, ": ", argument,
                    " must be in [0, 2^32), got ", value);
}

// The CPU has no float16; tracing does not know what it traces for.
inline bool is_compute_dtype(at::ScalarType dtype, at::DeviceType device) {
  return dtype == at::kFloat || dtype == at::kBFloat16 ||
         (dtype == at::kHalf && device != at::kCPU);
}

inline const char* compute_dtypes(at::DeviceType device) {
  return device == at::kCPU ? "float32 or bfloat16" : "float32, bfloat16 or float16";
}

inline void check_compute_dtype(const char* op, const char* argument, const at::Tensor& tensor,
                                at::DeviceType device) {
  TORCH_CHECK_TYPE(tensor.defined() && is_compute_dtype(tensor.scalar_type(), device), "sbrrt::",
                   op, ": ", argument, " must have dtype ", compute_dtypes(device), ", got ",
                   describe(tensor));
}

inline void check_floating(const char* op, const char* argument, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.defined() ? tensor.scalar_type() : at::ScalarType::Undefined;
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
                       dtype == at::kHalf,
                   "sbrrt::", op, ": ", argument,
                   " must have dtype float32, float64, bfloat16 or float16, got ",
                   describe(tensor));
}

inline void check_contiguous(const char* op, const char* argument, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "sbrrt::", op, ": ", argument,
                    " is written and must be contiguous, got strides ", tensor.sym_strides());
}

// A result; `shape` and `has_shape` as above.
inline void check_written(const char* op, const char* argument, const at::Tensor& tensor,
                          at::ScalarType dtype, const char* shape, bool has_shape,
                          at::DeviceType device) {
  check_tensor(op, argument, tensor, dtype, shape, has_shape);
  check_device(op, argument, tensor, device);
  check_contiguous(op, argument, tensor);
}

inline void check_offsets(const char* op, const at::Tensor& offsets) {
  check_tensor(op, "offsets", offsets, at::kLong, "[N]", offsets.defined() && offsets.dim() == 1);
}

inline void check_rng(const char* op, const at::Tensor& rng) {
  check_tensor(op, "rng", rng, at::kLong, "[2] = (seed, step)",
               rng.defined() && rng.dim() == 1 && rng.size(0) == 2);
}

// rng = (seed, step) on the CPU, checked but for the value of step; the seed counts as its 64 bits.
inline PhiloxStream philox_stream(const char* op, const at::Tensor& rng, int64_t site) {
  const auto values = rng.accessor<int64_t, 1>();
  check_uint32(op, "step, the second value of rng,", values[1]);
  const auto seed = static_cast<uint64_t>(values[0]);
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          static_cast<uint32_t>(site),
          static_cast<uint32_t>(values[1])};
}

}  // namespace sbrrt
