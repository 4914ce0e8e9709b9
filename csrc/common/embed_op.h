// embed's forward and backward as ops (common/op.h).
#pragma once

#include <utility>

#include "common/op.h"
#include "common/row_checks.h"

namespace sbrrt {

// Of dropout(LN(word[id] + position[p] + type[t]) * weight + shift).
struct EmbedTensors {
  TensorRef ids, positions, types;  // int64 [num_tokens]
  TensorRef word, position, type;   // [rows, hidden]
  TensorRef weight;                 // [hidden]
};

struct EmbedForward {
  static constexpr auto kOp = "embed_forward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, double, double, TensorRef, int64_t, TensorRef,
                         TensorRef, TensorRef, TensorRef);
  EmbedTensors in;
  TensorRef shift;
  double eps;
  DropoutArguments dropout;
  TensorRef out;
  StatisticsTensors statistics;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct EmbedBackward {
  static constexpr auto kOp = "embed_backward";
  using Signature = void(TensorRef, TensorRef, TensorRef, TensorRef, TensorRef, TensorRef,
                         TensorRef, TensorRef, TensorRef, TensorRef, double, TensorRef, int64_t,
                         TensorRef, MaybeTensorRef, MaybeTensorRef, MaybeTensorRef, MaybeTensorRef,
                         MaybeTensorRef, MaybeTensorRef);
  TensorRef grad;
  EmbedTensors in;
  StatisticsTensors statistics;
  DropoutArguments dropout;
  MaybeTensorRef order;  // int64 [3, num_tokens]: the tokens by the row they read of each table
  MaybeTensorRef dword, dposition, dtype;
  MaybeTensorRef dweight, dshift;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// All but the values of indices, rng and offsets.
inline void check_embed_inputs(const char* op, const EmbedTensors& t,
                               const DropoutArguments& dropout, at::DeviceType device) {
  check_first_rows(op, "word", t.word, device);
  const c10::SymInt width = t.word.sym_size(1);
  TORCH_CHECK_TYPE(t.ids.defined() && t.ids.scalar_type() == at::kLong, "sbrrt::", op,
                   ": ids must have dtype Long, got ", describe(t.ids));
  TORCH_CHECK_VALUE(t.ids.layout() == at::kStrided && t.ids.dim() == 1, "sbrrt::", op,
                    ": ids must be a dense tensor of shape [num_tokens], got ", describe(t.ids));
  const c10::SymInt num_tokens = t.ids.sym_size(0);
  check_indices(op, "ids", t.ids, num_tokens, device);
  check_indices(op, "positions", t.positions, num_tokens, device);
  check_indices(op, "types", t.types, num_tokens, device);
  check_first_rows(op, "position", t.position, device);
  check_rows(op, "position", t.position, t.position.sym_size(0), width, device);
  check_first_rows(op, "type", t.type, device);
  check_rows(op, "type", t.type, t.type.sym_size(0), width, device);
  check_vector(op, "weight", t.weight, width, device);
  check_dropout(op, dropout, num_tokens, device);
}

inline Arguments embed_read(const EmbedTensors& t, const DropoutArguments& dropout) {
  return {{"ids", t.ids},           {"positions", t.positions}, {"types", t.types},
          {"word", t.word},         {"position", t.position},   {"type", t.type},
          {"weight", t.weight},     {"rng", dropout.rng},       {"offsets", dropout.offsets}};
}

inline WriteSet EmbedForward::check(at::DeviceType device) const {
  check_embed_inputs(kOp, in, dropout, device);
  const c10::SymInt num_tokens = in.ids.sym_size(0), width = in.word.sym_size(1);
  check_vector(kOp, "shift", shift, width, device);
  check_epsilon(kOp, eps);
  check_rows(kOp, "out", out, num_tokens, width, device);
  check_written_rows(kOp, "out", out, out, in.word.scalar_type(), device);
  check_written_statistics(kOp, statistics, num_tokens, device);
  Arguments read = embed_read(in, dropout);
  read.emplace_back("shift", shift);
  return {kOp, {{"out", out}, {"mean", statistics.mean}, {"rstd", statistics.rstd}}, read};
}

inline WriteSet EmbedBackward::check(at::DeviceType device) const {
  check_embed_inputs(kOp, in, dropout, device);
  const c10::SymInt num_tokens = in.ids.sym_size(0);
  check_rows(kOp, "grad", grad, num_tokens, in.word.sym_size(1), device);
  check_statistics(kOp, statistics, num_tokens, device);
  if (order) {
    check_tensor(kOp, "order", *order, at::kLong, "[3, num_tokens]",
                 order->defined() && order->dim() == 2 && order->sym_size(0) == 3 &&
                     order->sym_size(1) == num_tokens);
    check_device(kOp, "order", *order, device);
  }
  check_parameter_gradient(kOp, "dword", dword, in.word, device);
  check_parameter_gradient(kOp, "dposition", dposition, in.position, device);
  check_parameter_gradient(kOp, "dtype", dtype, in.type, device);
  check_parameter_gradient(kOp, "dweight", dweight, in.weight, device);
  check_parameter_gradient(kOp, "dshift", dshift, in.weight, device);
  Arguments written, read = embed_read(in, dropout);
  append(written, "dword", dword);
  append(written, "dposition", dposition);
  append(written, "dtype", dtype);
  append(written, "dweight", dweight);
  append(written, "dshift", dshift);
  append(read, {{"grad", grad}, {"mean", statistics.mean}, {"rstd", statistics.rstd}});
  append(read, "order", order);
  return {kOp, std::move(written), read};
}

}  // namespace sbrrt
