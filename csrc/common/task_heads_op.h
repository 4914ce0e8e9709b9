// The heads of a group of tasks and their derivatives as ops (common/op.h).
#pragma once

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/op.h"
#include "common/task_heads.h"
#include "common/write_set.h"

namespace sbrrt {

// `heads` has kHeadFields numbers per head: kind, num_examples, first_sequence, num_outputs,
// weight_offset and bias_offset (-1 of a cosine); `scales` one.
constexpr size_t kHeadFields = 6;

struct HeadsForward {
  static constexpr auto kOp = "heads_forward";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, at::IntArrayRef,
                         at::ArrayRef<double>, TensorRef);
  TensorRef pooled;  // float32 [num_sequences, hidden], as all tensors
  MaybeTensorRef factors;
  TensorRef weights;  // [num_weights]
  at::IntArrayRef heads;
  at::ArrayRef<double> scales;
  TensorRef out;  // [num_outputs]

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct HeadsJvp {
  static constexpr auto kOp = "heads_jvp";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, TensorRef, at::IntArrayRef,
                         at::ArrayRef<double>, TensorRef);
  TensorRef pooled;
  MaybeTensorRef factors;
  TensorRef weights, pooled_tangent;
  at::IntArrayRef heads;
  at::ArrayRef<double> scales;
  TensorRef out;

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct HeadsVjp {
  static constexpr auto kOp = "heads_vjp";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, TensorRef, at::IntArrayRef,
                         at::ArrayRef<double>, TensorRef);
  TensorRef pooled;
  MaybeTensorRef factors;
  TensorRef weights, cotangents;
  at::IntArrayRef heads;
  at::ArrayRef<double> scales;
  TensorRef dpooled;  // like pooled; zero in rows of no head

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// Of one pass or two, whose gradients are summed.
struct HeadsWeightGradients {
  static constexpr auto kOp = "heads_weight_gradients";
  using Signature = void(TensorRef, MaybeTensorRef, TensorRef, MaybeTensorRef, MaybeTensorRef,
                         MaybeTensorRef, at::IntArrayRef, TensorRef);
  TensorRef pooled;
  MaybeTensorRef factors;
  TensorRef cotangents;
  MaybeTensorRef other_pooled, other_factors, other_cotangents;
  at::IntArrayRef heads;
  TensorRef dweights;  // [num_weights]; elements of no head stay

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

inline Head read_head(const char* op, const int64_t* fields, double scale, int64_t first_output) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t kind = fields[0], count = fields[1], sequence = fields[2], outputs = fields[3];
  const bool is_cosine = kind == static_cast<int64_t>(HeadKind::kCosine);
  const int64_t weight = fields[4], bias = fields[5];
  const bool has_weights = weight >= 0 && bias >= 0 && weight <= INT64_MAX / 2 &&
                           bias <= INT64_MAX / 2;
  TORCH_CHECK_VALUE(kind >= 0 && kind < kHeadKinds && count >= 1 && count <= kMost &&
                        sequence >= 0 && sequence <= kMost && outputs >= 1 && outputs <= kMost &&
                        (is_cosine ? outputs == 1 : has_weights),
                    "sbrrt::", op, ": heads must be kind, num_examples, first_sequence, "
                    "num_outputs, weight_offset and bias_offset each, all in range, got ",
                    at::IntArrayRef(fields, kHeadFields));
  return {static_cast<HeadKind>(kind), static_cast<int32_t>(count), static_cast<int32_t>(outputs),
          sequence, weight, bias, first_output, scale};
}

// An empty `scales` stands for ones.
inline std::vector<Head> read_heads(const char* op, at::IntArrayRef heads,
                                    at::ArrayRef<double> scales) {
  const size_t count = heads.size() / kHeadFields;
  TORCH_CHECK_VALUE(count >= 1 && heads.size() == count * kHeadFields, "sbrrt::", op,
                    ": heads must have ", kHeadFields, " numbers for each head, got ",
                    heads.size());
  TORCH_CHECK_VALUE(scales.empty() || scales.size() == count, "sbrrt::", op,
                    ": scales must have one number for each of ", count, " heads, got ",
                    scales.size());
  for (const double scale : scales) {
    TORCH_CHECK_VALUE(std::isfinite(static_cast<float>(scale)), "sbrrt::", op,
                      ": scales must be finite, got ", scale);
  }
  std::vector<Head> result;
  int64_t first_output = 0;
  for (size_t i = 0; i < count; ++i) {
    const double scale = scales.empty() ? 1.0 : scales[i];
    result.push_back(read_head(op, heads.data() + i * kHeadFields, scale, first_output));
    first_output += result.back().size();
  }
  return result;
}

inline int64_t num_head_outputs(const std::vector<Head>& heads) {
  return heads.back().first_output + heads.back().size();
}

// Ranges [first, second) that must lie apart and below a limit.
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

inline void check_ranges(const char* op, const char* what, Ranges ranges,
                         const c10::SymInt& limit) {
  std::sort(ranges.begin(), ranges.end());
  int64_t end = 0;
  for (const auto& [first, second] : ranges) {
    TORCH_CHECK_VALUE(first >= end, "sbrrt::", op, ": two of the heads share ", what, " from ",
                      first, " on");
    end = second;
  }
  TORCH_CHECK_VALUE(c10::SymInt(end) <= limit, "sbrrt::", op, ": the heads have ", what, " up to ", end,
                    ", above the ", limit, " there are");
}

inline void check_places(const char* op, const std::vector<Head>& heads, TensorRef pooled,
                         const char* weights_name, TensorRef weights) {
  const int64_t hidden = pooled.sym_size(1).guard_int(__FILE__, __LINE__);
  Ranges sequences, parameters;
  for (const Head& head : heads) {
    sequences.push_back({head.first_sequence, head.first_sequence + head.num_sequences()});
    if (head.is_cosine()) continue;
    const int64_t size = int64_t{head.num_outputs} * head.num_vectors() * hidden;
    parameters.push_back({head.weight_offset, head.weight_offset + size});
    parameters.push_back({head.bias_offset, head.bias_offset + head.num_outputs});
  }
  check_ranges(op, "sequences", std::move(sequences), pooled.sym_size(0));
  check_ranges(op, weights_name, std::move(parameters), weights.sym_size(0));
}

inline void check_pooled(const char* op, TensorRef pooled, at::DeviceType device) {
  check_tensor(op, "pooled", pooled, at::kFloat, "[num_sequences, hidden >= 1]",
               pooled.defined() && pooled.dim() == 2 && pooled.sym_size(1) >= 1);
  check_device(op, "pooled", pooled, device);
}

inline void check_like_pooled(const char* op, const char* name, TensorRef tensor, TensorRef pooled,
                              at::DeviceType device) {
  check_tensor(op, name, tensor, at::kFloat, "of pooled",
               tensor.defined() && tensor.sym_sizes() == pooled.sym_sizes());
  check_device(op, name, tensor, device);
}

inline void check_flat(const char* op, const char* name, TensorRef tensor, int64_t size,
                       const char* shape, at::DeviceType device) {
  check_tensor(op, name, tensor, at::kFloat, shape,
               tensor.defined() && tensor.dim() == 1 && (size < 0 || tensor.sym_size(0) == size));
  check_device(op, name, tensor, device);
}

// Of the three ops on one pass; returns the number of outputs.
template <typename Op>
int64_t check_heads(const Op& op, at::DeviceType device) {
  check_pooled(Op::kOp, op.pooled, device);
  if (op.factors) check_like_pooled(Op::kOp, "factors", *op.factors, op.pooled, device);
  check_flat(Op::kOp, "weights", op.weights, -1, "[num_weights]", device);
  const std::vector<Head> heads = read_heads(Op::kOp, op.heads, op.scales);
  check_places(Op::kOp, heads, op.pooled, "weights", op.weights);
  return num_head_outputs(heads);
}

inline void check_written_outputs(const char* op, TensorRef out, int64_t size,
                                  at::DeviceType device) {
  check_written(op, "out", out, at::kFloat, "[num_outputs]",
                out.defined() && out.dim() == 1 && out.sym_size(0) == size, device);
}

inline WriteSet HeadsForward::check(at::DeviceType device) const {
  check_written_outputs(kOp, out, check_heads(*this, device), device);
  Arguments read{{"pooled", pooled}, {"weights", weights}};
  append(read, "factors", factors);
  return {kOp, {{"out", out}}, read};
}

inline WriteSet HeadsJvp::check(at::DeviceType device) const {
  const int64_t num_outputs = check_heads(*this, device);
  check_like_pooled(kOp, "pooled_tangent", pooled_tangent, pooled, device);
  check_written_outputs(kOp, out, num_outputs, device);
  Arguments read{{"pooled", pooled}, {"weights", weights}, {"pooled_tangent", pooled_tangent}};
  append(read, "factors", factors);
  return {kOp, {{"out", out}}, read};
}

inline WriteSet HeadsVjp::check(at::DeviceType device) const {
  const int64_t num_outputs = check_heads(*this, device);
  check_flat(kOp, "cotangents", cotangents, num_outputs, "[num_outputs]", device);
  check_written(kOp, "dpooled", dpooled, at::kFloat, "of pooled",
                dpooled.defined() && dpooled.sym_sizes() == pooled.sym_sizes(), device);
  Arguments read{{"pooled", pooled}, {"weights", weights}, {"cotangents", cotangents}};
  append(read, "factors", factors);
  return {kOp, {{"dpooled", dpooled}}, read};
}

inline WriteSet HeadsWeightGradients::check(at::DeviceType device) const {
  check_pooled(kOp, pooled, device);
  const std::vector<Head> all = read_heads(kOp, heads, {});
  const int64_t num_outputs = num_head_outputs(all);
  check_flat(kOp, "cotangents", cotangents, num_outputs, "[num_outputs]", device);
  if (factors) check_like_pooled(kOp, "factors", *factors, pooled, device);
  TORCH_CHECK_VALUE(other_pooled.has_value() == other_cotangents.has_value() &&
                        (other_pooled || !other_factors),
                    "sbrrt::", kOp,
                    ": other_pooled and other_cotangents come together, other_factors with them");
  if (other_pooled) {
    check_like_pooled(kOp, "other_pooled", *other_pooled, pooled, device);
    check_flat(kOp, "other_cotangents", *other_cotangents, num_outputs, "[num_outputs]", device);
  }
  if (other_factors) check_like_pooled(kOp, "other_factors", *other_factors, pooled, device);
  check_written(kOp, "dweights", dweights, at::kFloat, "[num_weights]",
                dweights.defined() && dweights.dim() == 1, device);
  check_places(kOp, all, pooled, "dweights", dweights);
  Arguments read{{"pooled", pooled}, {"cotangents", cotangents}};
  append(read, "factors", factors);
  append(read, "other_pooled", other_pooled);
  append(read, "other_factors", other_factors);
  append(read, "other_cotangents", other_cotangents);
  return {kOp, {{"dweights", dweights}}, read};
}

}  // namespace sbrrt
