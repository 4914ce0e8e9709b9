// Checks of mm_into, which tracing shares.
#pragma once

#include "common/row_checks.h"

namespace sbrrt {

inline WriteSet matmul_write_set(const char* op, const at::Tensor& a, const at::Tensor& b,
                                 const at::Tensor& out, at::DeviceType device) {
  check_first_rows(op, "a", a, device);
  const at::ScalarType dtype = a.scalar_type();
  check_tensor(op, "b", b, dtype, "[columns of a, columns]",
               b.dim() == 2 && b.sym_size(0) == a.sym_size(1));
  check_tensor(op, "out", out, dtype, "[rows of a, columns of b]",
               out.dim() == 2 && out.sym_size(0) == a.sym_size(0) &&
                   out.sym_size(1) == b.sym_size(1));
  check_separate_rows(op, "out", out);
  check_device(op, "b", b, device);
  check_device(op, "out", out, device);
  return {op, {{"out", out}}, {{"a", a}, {"b", b}}};
}

}  // namespace sbrrt
