// mm_into as an op (common/op.h).
#pragma once

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

// out = a b by torch's library; rows may have gaps.
struct Matmul {
  static constexpr auto kOp = "mm_into";
  using Signature = void(TensorRef, TensorRef, TensorRef);
  TensorRef a, b, out;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline WriteSet Matmul::check(at::DeviceType device) const {
  check_first_rows(kOp, "a", a, device);
  const at::ScalarType dtype = a.scalar_type();
  check_tensor(kOp, "b", b, dtype, "[columns of a, columns]",
               b.dim() == 2 && b.sym_size(0) == a.sym_size(1));
  check_device(kOp, "b", b, device);
  check_tensor(kOp, "out", out, dtype, "[rows of a, columns of b]",
               out.dim() == 2 && out.sym_size(0) == a.sym_size(0) &&
                   out.sym_size(1) == b.sym_size(1));
  check_separate_rows(kOp, "out", out);
  check_device(kOp, "out", out, device);
  return {kOp, {{"out", out}}, {{"a", a}, {"b", b}}};
}

}  // namespace sbrrt
