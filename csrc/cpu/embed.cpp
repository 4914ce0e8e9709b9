// embed on the CPU: dropout(LN(word[id] + position[p] + type[t])) and its backward.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/embed_checks.h"
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
constexpr int64_t kMinLazyBytes = int64_t{1} << 22;  // from here on zeros are left to the kernel

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

  DenseInputs(const char* op, const EmbedTensors& t, double p, const at::Tensor& rng, int64_t site,
              const at::Tensor& offsets_)
      : ids(t.ids.contiguous()),
        positions(t.positions.contiguous()),
        types(t.types.contiguous()),
        word(with_dense_rows(t.word)),
        position(with_dense_rows(t.position)),
        type(with_dense_rows(t.type)),
        weight(padded_floats(t.weight)),
        offsets(offsets_.contiguous()),
        view{ids.size(0), word.size(1), ids.const_data_ptr<int64_t>(),
             positions.const_data_ptr<int64_t>(), types.const_data_ptr<int64_t>(),
             const_rows(word), const_rows(position), const_rows(type),
             dropout_rows(op, p, rng, site, offsets, word.size(1))} {
    check_index_values(op, "ids", ids, word.size(0));
    check_index_values(op, "positions", positions, position.size(0));
    check_index_values(op, "types", types, type.size(0));
  }
};

// Zeros in the form of a table. calloc's fresh pages are cleared when they are first touched, and a
// batch touches few of a vocabulary's rows.
at::Tensor zeros_like_table(const at::Tensor& table) {
  const int64_t num_bytes = table.numel() * table.element_size();
  if (num_bytes < kMinLazyBytes) return at::zeros(table.sizes(), table.options());
  constexpr uintptr_t kAlignment = 64;
  void* block = std::calloc(num_bytes + kAlignment, 1);
  TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "sbrrt::embed_backward: no memory for the ",
                   num_bytes, " bytes of a table's gradient");
  const auto start = (reinterpret_cast<uintptr_t>(block) + kAlignment - 1) / kAlignment * kAlignment;
  return at::from_blob(
      reinterpret_cast<void*>(start), table.sizes(), [block](void*) { std::free(block); },
      table.options());
}

// The tokens by the row they read, those of one row in their order.
std::vector<int64_t> sorted_tokens(const int64_t* indices, int64_t num_tokens, int64_t num_rows) {
  std::vector<int64_t> places(num_rows + 1), tokens(num_tokens);
  for (int64_t token = 0; token < num_tokens; ++token) ++places[indices[token] + 1];
  for (int64_t row = 0; row < num_rows; ++row) places[row + 1] += places[row];
  for (int64_t token = 0; token < num_tokens; ++token) tokens[places[indices[token]]++] = token;
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

// What a table's gradient is summed from.
struct Lookup {
  const at::Tensor &indices, &table;
  at::Tensor order;  // contiguous, or undefined
};

// The dense gradient of a table: zeros, and a sum in each row that a token reads. Rows of whole
// Vecs of floats are summed in place, others next to it.
class TableGradient {
 public:
  TableGradient(const Lookup& lookup, int index)
      : gradient_(zeros_like_table(lookup.table)),
        width_(lookup.table.size(1)),
        num_tokens_(lookup.indices.size(0)),
        indices_(lookup.indices.const_data_ptr<int64_t>()) {
    if (lookup.order.defined()) {
      tokens_ = lookup.order.const_data_ptr<int64_t>();
      check_order_values(tokens_, indices_, num_tokens_, index);
    } else {
      own_tokens_ = sorted_tokens(indices_, num_tokens_, lookup.table.size(0));
      tokens_ = own_tokens_.data();
    }
    for (int64_t i = 0; i < num_tokens_; ++i) {
      if (i == 0 || row_at(i) != row_at(i - 1)) rows_.push_back({i, i, nullptr});
      rows_.back().end = i + 1;
    }
    place_sums();
  }

  TableSums sums() const { return {tokens_, rows_.data(), static_cast<int64_t>(rows_.size())}; }

  // After the sums are made.
  at::Tensor finish() {
    if (buffer_.has_value() && !rows_.empty()) {
      const int64_t num_sums = static_cast<int64_t>(rows_.size()), padded = padded_width(width_);
      const at::Tensor sums = at::from_blob(buffer_->get(), {num_sums, padded}, at::kFloat);
      const at::Tensor rows = at::empty({num_sums}, at::kLong);
      auto* row = rows.mutable_data_ptr<int64_t>();
      for (const RowSum& sum : rows_) *row++ = row_at(sum.begin);
      gradient_.index_copy_(0, rows, sums.narrow(1, 0, width_).to(gradient_.scalar_type()));
    }
    return gradient_;
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

// Gradients of the tables from those of the rows that tokens read of them, ds [num_tokens, padded].
std::array<at::Tensor, 3> table_gradients(const float* ds, const std::array<Lookup, 3>& lookups,
                                          const std::array<bool, 5>& needs) {
  std::vector<TableGradient> gradients;
  gradients.reserve(lookups.size());
  for (size_t i = 0; i < lookups.size(); ++i) {
    if (needs[i]) gradients.emplace_back(lookups[i], static_cast<int>(i));
  }
  const int64_t num_tokens = lookups[0].indices.size(0);
  const int64_t num_strips = padded_width(lookups[0].table.size(1)) / kRowPadding;
  const int64_t grain = kGrainAdditions / (num_tokens * kRowPadding + 1) + 1;
  at::parallel_for(0, num_strips, grain, [&](int64_t begin, int64_t end) {
    for (const TableGradient& gradient : gradients) {
      sum_columns(ds, num_strips * kRowPadding, gradient.sums(), begin * kRowPadding,
                  end * kRowPadding);
    }
  });
  std::array<at::Tensor, 3> results;
  auto gradient = gradients.begin();
  for (size_t i = 0; i < lookups.size(); ++i) {
    const at::Tensor& table = lookups[i].table;
    results[i] = needs[i] ? (gradient++)->finish() : at::empty({0, table.size(1)}, table.options());
  }
  return results;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> embed_forward_cpu(
    const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& types,
    const at::Tensor& word, const at::Tensor& position, const at::Tensor& type,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "embed_forward";
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed(op, tensors, p, rng, site, offsets, at::kCPU);
  check_vector(op, "shift", shift, word.size(1), at::kCPU);
  check_epsilon(op, eps);
  const DenseInputs in(op, tensors, p, rng, site, offsets);
  const at::Tensor padded_shift = padded_floats(shift);
  const int64_t num_tokens = ids.size(0);
  const at::Tensor y = at::empty({num_tokens, word.size(1)}, word.options());
  const at::Tensor mean = at::empty({num_tokens}, word.options().dtype(at::kFloat));
  const at::Tensor rstd = at::empty({num_tokens}, mean.options());
  const LayerNormParameters parameters{in.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const EmbedOutputs out{rows(y), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>()};
  for_each_layernorm_block(num_tokens, word.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                         int64_t end) {
    forward_rows(in.view, parameters, out, buffers, begin, end);
  });
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> embed_backward_cpu(
    const at::Tensor& grad, const at::Tensor& ids, const at::Tensor& positions,
    const at::Tensor& types, const at::Tensor& word, const at::Tensor& position,
    const at::Tensor& type, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, std::array<bool, 5> needs,
    const std::optional<at::Tensor>& order) {
  constexpr auto op = "embed_backward";
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed_backward(op, grad, tensors, mean, rstd, p, rng, site, offsets, at::kCPU);
  check_token_order(op, order, tensors, at::kCPU);
  const DenseInputs in(op, tensors, p, rng, site, offsets);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const int64_t num_tokens = ids.size(0), padded = padded_width(word.size(1));
  const int64_t num_blocks = num_layernorm_blocks(num_tokens);
  const AlignedArray<float> ds(num_tokens * padded);
  const AlignedArray<float> sums(num_blocks * 2 * padded);
  for_each_layernorm_block(num_tokens, word.size(1), [&](auto& buffers, int64_t block,
                                                         int64_t begin, int64_t end) {
    float* s = sums.get() + block * 2 * padded;
    backward_rows(const_rows(dense_grad), in.view, in.weight.const_data_ptr<float>(),
                  {means.const_data_ptr<float>(), rstds.const_data_ptr<float>()}, ds.get(),
                  {s, s + padded, nullptr}, buffers, begin, end);
  });
  const auto order_of = [&](int64_t table) {
    return order ? order->select(0, table).contiguous() : at::Tensor();
  };
  auto tables = table_gradients(ds.get(),
                                {{{in.ids, word, order_of(0)},
                                  {in.positions, position, order_of(1)},
                                  {in.types, type, order_of(2)}}},
                                needs);
  const auto vector = [&](int64_t which, bool is_needed) {
    return parameter_gradient(sums.get() + which * padded, num_blocks, 2 * padded, weight,
                              is_needed);
  };
  return {tables[0], tables[1], tables[2], vector(0, needs[3]), vector(1, needs[4])};
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("embed_forward", &embed_forward_cpu);
  m.impl("embed_backward", &embed_backward_cpu);
}

}  // namespace sbrrt
