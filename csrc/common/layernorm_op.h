// dropout_add_layernorm's forward, backward and JVP as ops (common/op.h).
#pragma once

#include <utility>

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

// Of y = LN(residual + dropout(x + bias)) * weight + shift.
struct ResidualTensors {
  TensorRef x, bias, residual, weight;
};

struct LayerNormForward {
  static constexpr auto kOp = "dropout_add_layernorm_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, double, double,
                         TensorRef, int64_t, TensorRef, TensorRef, MaybeTensorRef, TensorRef,
                         TensorRef, MaybeTensorRef, MaybeTensorRef, MaybeTensorRef,
                         MaybeTensorRef);
  ResidualTensors in;
  TensorRef shift;
  double eps;
  DropoutArguments dropout;
  TensorRef out;
  MaybeTensorRef low;  // a bfloat16 copy of out
  StatisticsTensors statistics;
  // Of the last rows: all or none, but for low_tangent, which may be left out.
  MaybeTensorRef x_tangent, residual_tangent, out_tangent, low_tangent;

  WriteSet check(at::DeviceType device) const;
  void check_tangents(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// The gradient of y is grad + product, a matrix product's result.
struct LayerNormBackward {
  static constexpr auto kOp = "dropout_add_layernorm_backward";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, TensorRef, int64_t, TensorRef, TensorRef,
                         TensorRef, MaybeTensorRef, MaybeTensorRef);
  TensorRef grad;
  MaybeTensorRef product;
  ResidualTensors in;
  StatisticsTensors statistics;
  DropoutArguments dropout;
  TensorRef dx, dresidual;
  // int32 [num_segments + 1], ascending row bounds from 0 to num_rows, and float32 [num_segments, 3,
  // width], the sums over each segment's rows for bias, weight and shift; both or none.
  MaybeTensorRef segments, sums;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct LayerNormJvp {
  static constexpr auto kOp = "dropout_add_layernorm_jvp";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, TensorRef, int64_t, TensorRef, TensorRef,
                         MaybeTensorRef);
  TensorRef x_tangent, residual_tangent;
  ResidualTensors in;
  StatisticsTensors statistics;
  DropoutArguments dropout;
  TensorRef out;
  MaybeTensorRef low;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline void check_residual_sum(const char* op, const ResidualTensors& t,
                               const DropoutArguments& dropout, at::DeviceType device) {
  check_first_rows(op, "x", t.x, device);
  const c10::SymInt num_rows = t.x.sym_size(0), width = t.x.sym_size(1);
  check_vector(op, "bias", t.bias, width, device);
  check_rows(op, "residual", t.residual, num_rows, width, device);
  check_vector(op, "weight", t.weight, width, device);
  check_dropout(op, dropout, num_rows, device);
}

inline void check_layernorm_outputs(const char* op, TensorRef out, MaybeTensorRef low,
                                    TensorRef residual, at::DeviceType device) {
  check_written_rows(op, "out", out, residual, residual.scalar_type(), device);
  if (low) check_written_rows(op, "low", *low, residual, at::kBFloat16, device);
}

inline Arguments layernorm_read(const ResidualTensors& t, const DropoutArguments& dropout) {
  return {{"x", t.x},           {"bias", t.bias},      {"residual", t.residual},
          {"weight", t.weight}, {"rng", dropout.rng}, {"offsets", dropout.offsets}};
}

inline void LayerNormForward::check_tangents(at::DeviceType device) const {
  const bool has_tangents = x_tangent.has_value();
  TORCH_CHECK_VALUE(residual_tangent.has_value() == has_tangents &&
                        out_tangent.has_value() == has_tangents &&
                        (has_tangents || !low_tangent.has_value()),
                    "sbrrt::", kOp, ": x_tangent, residual_tangent and out_tangent go together, and "
                    "low_tangent with them; pass all of them or none");
  if (!has_tangents) return;
  check_last_rows(kOp, "x_tangent", *x_tangent, in.x, device);
  check_rows(kOp, "residual_tangent", *residual_tangent, x_tangent->sym_size(0), in.x.sym_size(1),
             device);
  check_written_rows(kOp, "out_tangent", *out_tangent, *x_tangent, in.residual.scalar_type(), device);
  if (low_tangent) {
    check_written_rows(kOp, "low_tangent", *low_tangent, *x_tangent, at::kBFloat16, device);
  }
}

inline WriteSet LayerNormForward::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  check_vector(kOp, "shift", shift, in.x.sym_size(1), device);
  check_epsilon(kOp, eps);
  check_layernorm_outputs(kOp, out, low, in.residual, device);
  check_written_statistics(kOp, statistics, in.x.sym_size(0), device);
  check_tangents(device);
  Arguments written{{"out", out}, {"mean", statistics.mean}, {"rstd", statistics.rstd}};
  append(written, "low", low);
  append(written, "out_tangent", out_tangent);
  append(written, "low_tangent", low_tangent);
  Arguments read = layernorm_read(in, dropout);
  read.emplace_back("shift", shift);
  append(read, "x_tangent", x_tangent);
  append(read, "residual_tangent", residual_tangent);
  return {kOp, std::move(written), read};
}

// All but the values of segments. The sums of a segment are dense, segments may lie apart.
inline void check_segment_sums(const char* op, TensorRef segments, TensorRef sums,
                               const c10::SymInt& width, at::DeviceType device) {
  check_tensor(op, "segments", segments, at::kInt, "[segments + 1]",
               segments.dim() == 1 && segments.sym_size(0) >= 1);
  check_device(op, "segments", segments, device);
  const c10::SymInt num_segments = segments.sym_size(0) - 1;
  check_tensor(op, "sums", sums, at::kFloat, "[segments, 3, features]",
               sums.dim() == 3 && sums.sym_size(0) == num_segments && sums.sym_size(1) == 3 &&
                   sums.sym_size(2) == width);
  const bool is_dense = (sums.sym_stride(2) == 1 || width == 1) && sums.sym_stride(1) == width;
  const bool is_apart = sums.sym_stride(0) >= width * 3 || num_segments <= 1;
  TORCH_CHECK_VALUE(is_dense && is_apart, "sbrrt::", op, ": sums is written and needs a dense [3, ",
                    width, "] of each segment, apart from the others, got strides ",
                    sums.sym_strides(), "; pass a contiguous tensor or columns of one");
  check_device(op, "sums", sums, device);
}

// dresidual may be exactly grad.
inline WriteSet LayerNormBackward::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  const c10::SymInt num_rows = in.x.sym_size(0), width = in.x.sym_size(1);
  check_rows(kOp, "grad", grad, num_rows, width, device);
  check_statistics(kOp, statistics, num_rows, device);
  if (product) check_rows(kOp, "product", *product, num_rows, width, device);
  check_written_rows(kOp, "dx", dx, in.x, in.x.scalar_type(), device);
  check_written_rows(kOp, "dresidual", dresidual, in.residual, in.residual.scalar_type(), device);
  TORCH_CHECK_VALUE(segments.has_value() == sums.has_value(), "sbrrt::", kOp,
                    ": sums are those of segments; pass both or none");
  if (sums) check_segment_sums(kOp, *segments, *sums, width, device);
  Arguments written{{"dx", dx}, {"dresidual", dresidual}};
  append(written, "sums", sums);
  Arguments read = layernorm_read(in, dropout);
  append(read, {{"grad", grad}, {"mean", statistics.mean}, {"rstd", statistics.rstd}});
  append(read, "product", product);
  append(read, "segments", segments);
  return {kOp, std::move(written), read, {{"dresidual", "grad"}}};
}

inline WriteSet LayerNormJvp::check(at::DeviceType device) const {
  check_residual_sum(kOp, in, dropout, device);
  const c10::SymInt num_rows = in.x.sym_size(0), width = in.x.sym_size(1);
  check_rows(kOp, "x_tangent", x_tangent, num_rows, width, device);
  check_rows(kOp, "residual_tangent", residual_tangent, num_rows, width, device);
  check_statistics(kOp, statistics, num_rows, device);
  check_layernorm_outputs(kOp, out, low, in.residual, device);
  Arguments written{{"out", out}}, read = layernorm_read(in, dropout);
  append(written, "low", low);
  append(read, {{"x_tangent", x_tangent},
                {"residual_tangent", residual_tangent},
                {"mean", statistics.mean},
                {"rstd", statistics.rstd}});
  return {kOp, std::move(written), read};
}

}  // namespace sbrrt
