// column_sums_into as an op (common/op.h).
#pragma once

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

// out[l, j] = sum over r of weights[r] x[l, r, j], in fp32; rows without a weight have 1.
struct ColumnSums {
  static constexpr auto kOp = "column_sums";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef);
  TensorRef x;
  MaybeTensorRef weights;
  TensorRef out;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline WriteSet ColumnSums::check(at::DeviceType device) const {
  check_compute_dtype(kOp, "x", x, device);
  TORCH_CHECK_VALUE(x.layout() == at::kStrided && x.dim() == 3 && x.sym_size(2) >= 1, "sbrrt::",
                    kOp, ": x must be a dense tensor of shape [layers, rows, features >= 1], got ",
                    describe(x));
  check_device(kOp, "x", x, device);
  if (weights) {
    check_tensor(kOp, "weights", *weights, at::kFloat, "[at most the rows of x]",
                 weights->dim() == 1 && weights->sym_size(0) <= x.sym_size(1));
    check_device(kOp, "weights", *weights, device);
  }
  check_tensor(kOp, "out", out, at::kFloat, "[layers of x, features of x]",
               out.dim() == 2 && out.sym_size(0) == x.sym_size(0) &&
                   out.sym_size(1) == x.sym_size(2));
  check_separate_rows(kOp, "out", out);
  check_device(kOp, "out", out, device);
  Arguments read{{"x", x}};
  append(read, "weights", weights);
  return {kOp, {{"out", out}}, read};
}

// x whose rows are dense: itself, or a copy.
inline at::Tensor with_dense_layers(const at::Tensor& x) {
  return x.stride(2) == 1 || x.size(2) == 1 ? x : x.contiguous();
}

}  // namespace sbrrt
