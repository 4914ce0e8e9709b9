// What embed's forward and backward check alike; all but the values of indices, rng and offsets.
#pragma once

#include <optional>

#include "common/row_checks.h"

namespace sbrrt {

struct EmbedTensors {
  const at::Tensor &ids, &positions, &types;  // int64 [num_tokens]
  const at::Tensor &word, &position, &type;   // [rows, hidden]
  const at::Tensor& weight;                   // [hidden]
};

inline void check_embed(const char* op, const EmbedTensors& t, double p, const at::Tensor& rng,
                        int64_t site, const at::Tensor& offsets, at::DeviceType device) {
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
  check_dropout(op, p, rng, site, offsets, num_tokens, device);
}

// The tokens sorted by the rows that they read of each table, where the caller has them.
inline void check_token_order(const char* op, const std::optional<at::Tensor>& order,
                              const EmbedTensors& t, at::DeviceType device) {
  if (!order) return;
  check_tensor(op, "order", *order, at::kLong, "[3, num_tokens]",
               order->defined() && order->dim() == 2 && order->sym_size(0) == 3 &&
                   order->sym_size(1) == t.ids.sym_size(0));
  check_device(op, "order", *order, device);
}

inline void check_embed_backward(const char* op, const at::Tensor& grad, const EmbedTensors& t,
                                 const at::Tensor& mean, const at::Tensor& rstd, double p,
                                 const at::Tensor& rng, int64_t site, const at::Tensor& offsets,
                                 at::DeviceType device) {
  check_embed(op, t, p, rng, site, offsets, device);
  const c10::SymInt num_tokens = t.ids.sym_size(0);
  check_rows(op, "grad", grad, num_tokens, t.word.sym_size(1), device);
  check_statistic(op, "mean", mean, num_tokens, device);
  check_statistic(op, "rstd", rstd, num_tokens, device);
}

}  // namespace sbrrt
