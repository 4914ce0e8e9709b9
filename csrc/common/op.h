// An op is a struct: its arguments in the order of its schema, `check`, and what it does on a
// device. registration.cpp gives the dispatcher one function per op and device that fills the
// struct, checks it, and runs it; tracing checks alone. Every op writes into memory of the
// caller's; what has no value (MaybeTensorRef) is not wanted and not computed.
//
// `Signature` is that function's type; the schema, which Python defines (sbrrt_fast/ops), must
// match it. An argument that several ops take together is a struct of its own.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace sbrrt {

using TensorRef = const at::Tensor&;
using MaybeTensorRef = const std::optional<at::Tensor>&;

// Dropout of rows. Element (n, j) has the logical index offsets[n] + j.
struct DropoutArguments {
  double p;
  TensorRef rng;  // int64 [2], seed and step
  int64_t site;
  TensorRef offsets;  // int64 [num_rows]
};

// LayerNorm's, of each row: float32 [num_rows].
struct StatisticsTensors {
  TensorRef mean, rstd;
};

}  // namespace sbrrt
