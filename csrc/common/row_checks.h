// Checks of the arguments that ops on rows of features share; for real tensors and for tracing.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymBool.h>

#include <limits>
#include <optional>

#include "common/checks.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

// A [num_rows, width] tensor of floats on `device`.
inline void check_rows(const char* op, const char* argument, const at::Tensor& tensor,
                       const c10::SymInt& num_rows, const c10::SymInt& width,
                       at::DeviceType device) {
  check_compute_dtype(op, argument, tensor, device);
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.dim() == 2 &&
                        tensor.sym_size(0) == num_rows && tensor.sym_size(1) == width,
                    "sbrrt::", op, ": ", argument, " must be a dense tensor of shape [", num_rows,
                    ", ", width, "], got ", describe(tensor));
  check_device(op, argument, tensor, device);
}

// The tensor that gives num_rows and width to the others.
inline void check_first_rows(const char* op, const char* argument, const at::Tensor& tensor,
                             at::DeviceType device) {
  check_compute_dtype(op, argument, tensor, device);
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.dim() == 2 &&
                        tensor.sym_size(1) >= 1,
                    "sbrrt::", op, ": ", argument,
                    " must be a dense tensor of shape [rows, features >= 1], got ",
                    describe(tensor));
  check_device(op, argument, tensor, device);
}

// A matrix that is written: elements of a row side by side, rows that do not overlap.
inline void check_separate_rows(const char* op, const char* argument, const at::Tensor& tensor) {
  const bool is_dense = tensor.sym_stride(1) == 1 || tensor.sym_size(1) == 1;
  const bool is_apart =
      tensor.sym_stride(0) >= tensor.sym_size(1) || tensor.sym_size(0) <= 1;
  TORCH_CHECK_VALUE(is_dense && is_apart, "sbrrt::", op, ": ", argument,
                    " is written and needs dense rows that do not overlap, got strides ",
                    tensor.sym_strides(), "; pass a contiguous tensor or columns of one");
}

// A tensor that is written: shaped as another one, with dense rows.
inline void check_written_rows(const char* op, const char* argument, const at::Tensor& tensor,
                               const at::Tensor& like, at::ScalarType dtype,
                               at::DeviceType device) {
  check_rows(op, argument, tensor, like.sym_size(0), like.sym_size(1), device);
  check_tensor(op, argument, tensor, dtype, "like its input", true);
  check_separate_rows(op, argument, tensor);
}

// The tangent of the last rows of a forward's input.
inline void check_last_rows(const char* op, const char* argument, const at::Tensor& tangent,
                            const at::Tensor& x, at::DeviceType device) {
  check_first_rows(op, argument, tangent, device);
  check_rows(op, argument, tangent, tangent.sym_size(0), x.sym_size(1), device);
  TORCH_CHECK_VALUE(tangent.sym_size(0) <= x.sym_size(0), "sbrrt::", op, ": ", argument,
                    " is of the last rows of x, which has ", x.sym_size(0), ", got ",
                    describe(tangent));
}

// A parameter [width], or statistics [num_rows].
inline void check_vector(const char* op, const char* argument, const at::Tensor& tensor,
                         const c10::SymInt& size, at::DeviceType device) {
  check_compute_dtype(op, argument, tensor, device);
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.dim() == 1 &&
                        tensor.sym_size(0) == size,
                    "sbrrt::", op, ": ", argument, " must be a dense tensor of shape [", size,
                    "], got ", describe(tensor));
  check_device(op, argument, tensor, device);
}

inline void check_statistic(const char* op, const char* argument, const at::Tensor& tensor,
                            const c10::SymInt& num_rows, at::DeviceType device) {
  check_vector(op, argument, tensor, num_rows, device);
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, "sbrrt::", op, ": ", argument,
                   " must have dtype Float, got ", describe(tensor));
}

inline void check_statistics(const char* op, const StatisticsTensors& statistics,
                             const c10::SymInt& num_rows, at::DeviceType device) {
  check_statistic(op, "mean", statistics.mean, num_rows, device);
  check_statistic(op, "rstd", statistics.rstd, num_rows, device);
}

inline void check_written_statistics(const char* op, const StatisticsTensors& statistics,
                                     const c10::SymInt& num_rows, at::DeviceType device) {
  check_statistics(op, statistics, num_rows, device);
  check_contiguous(op, "mean", statistics.mean);
  check_contiguous(op, "rstd", statistics.rstd);
}

// The gradient of a parameter or a table, where it is wanted.
inline void check_parameter_gradient(const char* op, const char* argument,
                                     const std::optional<at::Tensor>& gradient,
                                     const at::Tensor& parameter, at::DeviceType device) {
  if (!gradient) return;
  check_written(op, argument, *gradient, parameter.scalar_type(), "[sizes of its parameter]",
                gradient->defined() && gradient->sym_sizes() == parameter.sym_sizes(), device);
}

inline void check_indices(const char* op, const char* argument, const at::Tensor& tensor,
                          const c10::SymInt& num_rows, at::DeviceType device) {
  TORCH_CHECK_TYPE(tensor.defined() && tensor.scalar_type() == at::kLong, "sbrrt::", op, ": ",
                   argument, " must have dtype Long, got ", describe(tensor));
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.dim() == 1 &&
                        tensor.sym_size(0) == num_rows,
                    "sbrrt::", op, ": ", argument, " must be a dense tensor of shape [", num_rows,
                    "], got ", describe(tensor));
  check_device(op, argument, tensor, device);
}

inline void check_epsilon(const char* op, double eps) {
  TORCH_CHECK_VALUE(eps >= 0 && eps < std::numeric_limits<double>::infinity(), "sbrrt::", op,
                    ": eps must be finite and not negative, got ", eps);
}

// All but the values of rng and offsets.
inline void check_dropout(const char* op, const DropoutArguments& dropout,
                          const c10::SymInt& num_rows, at::DeviceType device) {
  check_probability(op, dropout.p);
  check_rng(op, dropout.rng);
  check_device(op, "rng", dropout.rng, device);
  check_uint32(op, "site", dropout.site);
  check_indices(op, "offsets", dropout.offsets, num_rows, device);
}

}  // namespace sbrrt
