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

// Where the gradients of tokens add up that read the same row of a table.
struct TableSums {
  float* const* to;      // [num_tokens], the sum a token belongs to: [padded_width(width)]
  const char* is_first;  // [num_tokens], whether it opens that sum
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

void sum_columns(const float* ds, int64_t num_tokens, int64_t padded,
                 const TableSums* tables, int num_tables, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(sum_rows, ds, num_tokens, padded, tables, num_tables, begin, end)
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

// The dense gradient of a table: zeros, and a sum in each row that a token reads. Rows of whole
// Vecs of floats are summed in place, others next to it.
class TableGradient {
 public:
  TableGradient(const at::Tensor& indices, const at::Tensor& table)
      : gradient_(zeros_like_table(table)), width_(table.size(1)) {
    const int64_t padded = padded_width(width_), num_tokens = indices.size(0);
    const auto* data = indices.const_data_ptr<int64_t>();
    const bool is_in_place = table.scalar_type() == at::kFloat && width_ == padded;
    std::vector<int32_t> sum_of_row(table.size(0), -1);
    is_first_.resize(num_tokens);
    to_.resize(num_tokens);
    for (int64_t token = 0; token < num_tokens; ++token) {
      int32_t& sum = sum_of_row[data[token]];
      is_first_[token] = sum < 0;
      if (sum >= 0) continue;
      sum = static_cast<int32_t>(rows_.size());
      rows_.push_back(data[token]);
    }
    if (!is_in_place) {
      buffer_.emplace(rows_.size() * padded);
    }
    float* start = is_in_place ? gradient_.mutable_data_ptr<float>() : buffer_->get();
    for (int64_t token = 0; token < num_tokens; ++token) {
      const int64_t row = data[token];
      to_[token] = start + (is_in_place ? row : sum_of_row[row]) * padded;
    }
  }

  TableSums sums() const { return {to_.data(), is_first_.data()}; }

  // After the sums are made.
  at::Tensor finish() {
    if (buffer_.has_value() && !rows_.empty()) {
      const int64_t num_sums = static_cast<int64_t>(rows_.size()), padded = padded_width(width_);
      const at::Tensor sums = at::from_blob(buffer_->get(), {num_sums, padded}, at::kFloat);
      const at::Tensor rows = at::from_blob(rows_.data(), {num_sums}, at::kLong);
      gradient_.index_copy_(0, rows, sums.narrow(1, 0, width_).to(gradient_.scalar_type()));
    }
    return gradient_;
  }

 private:
  at::Tensor gradient_;
  int64_t width_;
  std::vector<float*> to_;
  std::vector<char> is_first_;
  std::vector<int64_t> rows_;  // of the table, in the order of their sums
  std::optional<AlignedArray<float>> buffer_;  // [rows, padded] where they are not in place
};
struct Lookup {
  const at::Tensor &indices, &table;
};

// Gradients of the tables from those of the rows that tokens read of them, ds [num_tokens, padded].
std::array<at::Tensor, 3> table_gradients(const float* ds, const std::array<Lookup, 3>& lookups,
                                          const std::array<bool, 5>& needs) {
  std::vector<TableGradient> gradients;
  std::vector<TableSums> sums;
  for (size_t i = 0; i < lookups.size(); ++i) {
    if (needs[i]) gradients.emplace_back(lookups[i].indices, lookups[i].table);
  }
  for (const TableGradient& gradient : gradients) sums.push_back(gradient.sums());
  const int64_t num_tokens = lookups[0].indices.size(0);
  const int64_t num_strips = padded_width(lookups[0].table.size(1)) / kRowPadding;
  const int64_t grain = kGrainAdditions / (num_tokens * kRowPadding + 1) + 1;
  at::parallel_for(0, num_strips, grain, [&](int64_t begin, int64_t end) {
    sum_columns(ds, num_tokens, num_strips * kRowPadding, sums.data(),
                static_cast<int>(sums.size()), begin * kRowPadding, end * kRowPadding);
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
    const at::Tensor& offsets, std::array<bool, 5> needs) {
  constexpr auto op = "embed_backward";
  const EmbedTensors tensors{ids, positions, types, word, position, type, weight};
  check_embed_backward(op, grad, tensors, mean, rstd, p, rng, site, offsets, at::kCPU);
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
  auto tables = table_gradients(
      ds.get(), {{{in.ids, word}, {in.positions, position}, {in.types, type}}}, needs);
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
