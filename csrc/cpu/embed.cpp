// embed on the CPU: dropout(LN(word[id] + position[p] + type[t])) and its backward.
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "common/embed_op.h"
#include "cpu/layernorm.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

struct EmbedInputs {
  int64_t num_tokens, width;
  const int64_t *ids, *positions, *types;  // [num_tokens]
  ConstRows word, position, type;
  DropoutRows dropout;
};

struct EmbedOutputs {
  Rows y;
  float *mean, *rstd;  // [num_tokens]
};

// A row of a table: which of its sorted tokens read it, and where the sum of their gradients goes.
struct RowSum {
  int64_t begin, end;
  float* to;  // [padded_width(width)]
};

struct TableSums {
  const int64_t* tokens;  // sorted by row
  const RowSum* rows;
  int64_t num_rows;
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/embed_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainAdditions = 32768;     // near 10 us: well above the cost of a fork
constexpr int64_t kGrainBytes = 1 << 20;       // of zeros, the same

void forward_rows(const EmbedInputs& in, const LayerNormParameters& parameters,
                  const EmbedOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                  int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(embed_forward, in, parameters, out, buffers, begin, end)
}

void backward_rows(const ConstRows& dy, const EmbedInputs& in, const float* weight,
                   const LayerNormStatistics& statistics, float* ds, const LayerNormSums& sums,
                   LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(embed_backward, dy, in, weight, statistics, ds, sums, buffers, begin,
                           end)
}

void sum_columns(const float* ds, int64_t padded, const TableSums& table, int64_t begin,
                 int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(sum_rows, ds, padded, table, begin, end)
}

void check_index_values(const char* op, const char* argument, const at::Tensor& indices,
                        int64_t num_rows) {
  const int64_t* data = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.size(0); ++i) {
    TORCH_CHECK_VALUE(data[i] >= 0 && data[i] < num_rows, "sbrrt::", op, ": ", argument, "[", i,
                      "] = ", data[i], " is not a row of its table, which has ", num_rows);
  }
}

// Dense forms of the tensors, which must live as long as `view` is used.
struct DenseInputs {
  at::Tensor ids, positions, types, word, position, type, weight, offsets;
  EmbedInputs view;

  DenseInputs(const char* op, const EmbedTensors& t, const DropoutArguments& dropout)
      : ids(t.ids.contiguous()),
        positions(t.positions.contiguous()),
        types(t.types.contiguous()),
        word(with_dense_rows(t.word)),
        position(with_dense_rows(t.position)),
        type(with_dense_rows(t.type)),
        weight(padded_floats(t.weight)),
        offsets(dropout.offsets.contiguous()),
        view{ids.size(0), word.size(1), ids.const_data_ptr<int64_t>(),
             positions.const_data_ptr<int64_t>(), types.const_data_ptr<int64_t>(),
             const_rows(word), const_rows(position), const_rows(type),
             dropout_rows(op, dropout, offsets, word.size(1))} {
    check_index_values(op, "ids", ids, word.size(0));
    check_index_values(op, "positions", positions, position.size(0));
    check_index_values(op, "types", types, type.size(0));
  }
};

// The tokens by the row they read, those of one row in their order.
std::vector<int64_t> sorted_tokens(const int64_t* indices, int64_t num_tokens, int64_t num_rows) {
  std::vector<int64_t> starts(num_rows + 1), tokens(num_tokens);
  for (int64_t token = 0; token < num_tokens; ++token) ++starts[indices[token] + 1];
  for (int64_t row = 0; row < num_rows; ++row) starts[row + 1] += starts[row];
  for (int64_t token = 0; token < num_tokens; ++token) tokens[starts[indices[token]]++] = token;
  return tokens;
}

// The caller's order of the tokens, each once.
void check_order_values(const int64_t* order, const int64_t* indices, int64_t num_tokens, int table) {
  const auto check = [&](int64_t place, bool is_right) {
    TORCH_CHECK_VALUE(is_right, "sbrrt::embed_backward: order[", table, ", ", place, "] = ",
                      order[place], ", but order[", table,
                      "] must be a stable argsort of the table's indices");
  };
  for (int64_t i = 0; i < num_tokens; ++i) check(i, order[i] >= 0 && order[i] < num_tokens);
  for (int64_t i = 1; i < num_tokens; ++i) {
    const int64_t row = indices[order[i]], before = indices[order[i - 1]];
    check(i, before < row || (before == row && order[i - 1] < order[i]));
  }
}

// The gradient of table `index`: zeros, and a sum in each row that a token reads. Rows of whole
// Vecs of floats are summed in place, others next to it.
class TableGradient {
 public:
  // `order` is contiguous, or null.
  TableGradient(const at::Tensor& gradient, const at::Tensor& indices, const int64_t* order,
                int index)
      : gradient_(gradient),
        width_(gradient.size(1)),
        num_tokens_(indices.size(0)),
        indices_(indices.const_data_ptr<int64_t>()),
        tokens_(order) {
    if (order == nullptr) {
      own_tokens_ = sorted_tokens(indices_, num_tokens_, gradient.size(0));
      tokens_ = own_tokens_.data();
    } else {
      check_order_values(order, indices_, num_tokens_, index);
    }
    for (int64_t i = 0; i < num_tokens_; ++i) {
      if (i == 0 || row_at(i) != row_at(i - 1)) rows_.push_back({i, i, nullptr});
      rows_.back().end = i + 1;
    }
    place_sums();
  }

  TableSums sums() const { return {tokens_, rows_.data(), static_cast<int64_t>(rows_.size())}; }

  // Zero bits are zero in every dtype; torch's zero_() takes several times as long.
  void clear() const {
    auto* bytes = static_cast<char*>(gradient_.mutable_data_ptr());
    const auto size = static_cast<int64_t>(gradient_.nbytes());
    at::parallel_for(0, size, kGrainBytes, [&](int64_t begin, int64_t end) {
      std::memset(bytes + begin, 0, end - begin);
    });
  }

  // After the sums are made.
  void finish() {
    if (!buffer_.has_value() || rows_.empty()) return;
    const int64_t num_sums = static_cast<int64_t>(rows_.size()), padded = padded_width(width_);
    const at::Tensor sums = at::from_blob(buffer_->get(), {num_sums, padded}, at::kFloat);
    const at::Tensor rows = gradient_.new_empty({num_sums}, at::kLong);
    auto* row = rows.mutable_data_ptr<int64_t>();
    for (const RowSum& sum : rows_) *row++ = row_at(sum.begin);
    gradient_.index_copy_(0, rows, sums.narrow(1, 0, width_).to(gradient_.scalar_type()));
  }

 private:
  int64_t row_at(int64_t place) const { return indices_[tokens_[place]]; }

  void place_sums() {
    const int64_t padded = padded_width(width_);
    const bool is_in_place = gradient_.scalar_type() == at::kFloat && width_ == padded;
    if (!is_in_place) buffer_.emplace(rows_.size() * padded);
    float* start = is_in_place ? gradient_.mutable_data_ptr<float>() : buffer_->get();
    for (size_t i = 0; i < rows_.size(); ++i) {
      rows_[i].to = start + (is_in_place ? row_at(rows_[i].begin) : i) * padded;
    }
  }

  at::Tensor gradient_;
  int64_t width_, num_tokens_;
  const int64_t *indices_, *tokens_;
  std::vector<int64_t> own_tokens_;
  std::vector<RowSum> rows_;  // in their order in the table
  std::optional<AlignedArray<float>> buffer_;  // [rows, padded] where they are not in place
};

// The wanted tables' gradients from those of the rows that tokens read of them, ds [num_tokens,
// padded].
void write_table_gradients(const float* ds, int64_t num_tokens, int64_t padded,
                           std::vector<TableGradient>& gradients) {
  for (const TableGradient& gradient : gradients) gradient.clear();
  const int64_t num_strips = padded / kRowPadding;
  const int64_t grain = kGrainAdditions / (num_tokens * kRowPadding + 1) + 1;
  at::parallel_for(0, num_strips, grain, [&](int64_t begin, int64_t end) {
    for (const TableGradient& gradient : gradients) {
      sum_columns(ds, padded, gradient.sums(), begin * kRowPadding, end * kRowPadding);
    }
  });
  for (TableGradient& gradient : gradients) gradient.finish();
}

}  // namespace

void EmbedForward::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const at::Tensor padded_shift = padded_floats(shift);
  const LayerNormParameters parameters{dense.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const EmbedOutputs outputs{rows(out), statistics.mean.mutable_data_ptr<float>(),
                             statistics.rstd.mutable_data_ptr<float>()};
  for_each_layernorm_block(out.size(0), out.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                         int64_t end) {
    forward_rows(dense.view, parameters, outputs, buffers, begin, end);
  });
}

void EmbedBackward::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor means = statistics.mean.contiguous(), rstds = statistics.rstd.contiguous();
  const int64_t num_tokens = grad.size(0), padded = padded_width(grad.size(1));
  const at::Tensor orders = order ? order->contiguous() : at::Tensor();
  const at::Tensor* indices[] = {&dense.ids, &dense.positions, &dense.types};
  const std::optional<at::Tensor>* tables[] = {&dword, &dposition, &dtype};
  std::vector<TableGradient> gradients;
  gradients.reserve(std::size(tables));
  for (int i = 0; i < 3; ++i) {
    if (!*tables[i]) continue;
    const int64_t* sorted = order ? orders.const_data_ptr<int64_t>() + i * num_tokens : nullptr;
    gradients.emplace_back(**tables[i], *indices[i], sorted, i);
  }
  const int64_t num_blocks = num_layernorm_blocks(num_tokens);
  const AlignedArray<float> ds(num_tokens * padded);
  const AlignedArray<float> sums(num_blocks * 2 * padded);
  for_each_layernorm_block(num_tokens, grad.size(1), [&](auto& buffers, int64_t block,
                                                         int64_t begin, int64_t end) {
    float* s = sums.get() + block * 2 * padded;
    backward_rows(const_rows(dense_grad), dense.view, dense.weight.const_data_ptr<float>(),
                  {means.const_data_ptr<float>(), rstds.const_data_ptr<float>()}, ds.get(),
                  {s, s + padded, nullptr}, buffers, begin, end);
  });
  write_table_gradients(ds.get(), num_tokens, padded, gradients);
  if (dweight) write_parameter_gradient(sums.get(), num_blocks, 2 * padded, *dweight);
  if (dshift) write_parameter_gradient(sums.get() + padded, num_blocks, 2 * padded, *dshift);
}

}  // namespace sbrrt
