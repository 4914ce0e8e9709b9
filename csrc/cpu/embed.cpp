// embed on the CPU: dropout(LN(word[id] + position[p] + type[t])) and its backward.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "common/embed_checks.h"
#include "cpu/layernorm.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

struct EmbedInputs {
  int64_t width;
  const int64_t *ids, *positions, *types;  // [num_tokens]
  ConstRows word, position, type;
  DropoutRows dropout;
};

struct EmbedOutputs {
  Rows y;
  float *mean, *rstd;  // [num_tokens]
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/embed_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainRows = 32;   // 12k elements, near 10 us: well above the cost of a fork
constexpr int64_t kGrainGroups = 64;

void forward_rows(const EmbedInputs& in, const LayerNormParameters& parameters,
                  const EmbedOutputs& out, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(embed_forward, in, parameters, out, begin, end)
}

void backward_rows(const ConstRows& dy, const EmbedInputs& in, const float* weight,
                   const LayerNormStatistics& statistics, float* ds, const LayerNormSums& sums,
                   int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(embed_backward, dy, in, weight, statistics, ds, sums, begin, end)
}

void sum_group(const float* ds, const int64_t* tokens, int64_t count, int64_t width,
               const Rows& table, int64_t row, float* buffer) {
  SBRRT_RETURN_ON_THIS_CPU(sum_rows, ds, tokens, count, width, table, row, buffer)
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
        weight(padded_copy(t.weight)),
        offsets(offsets_.contiguous()),
        view{word.size(1), ids.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(),
             types.const_data_ptr<int64_t>(), const_rows(word), const_rows(position),
             const_rows(type), dropout_rows(op, p, rng, site, offsets, word.size(1))} {
    check_index_values(op, "ids", ids, word.size(0));
    check_index_values(op, "positions", positions, position.size(0));
    check_index_values(op, "types", types, type.size(0));
  }
};

// Tokens by the table row they read; those of one row in their own order.
struct TokenGroups {
  std::vector<int64_t> tokens, starts, rows;  // group g: tokens[starts[g] ... starts[g + 1])
};

TokenGroups group_tokens(const at::Tensor& indices) {
  const int64_t num_tokens = indices.size(0), *data = indices.const_data_ptr<int64_t>();
  std::vector<std::pair<int64_t, int64_t>> sorted(num_tokens);  // row, token
  for (int64_t i = 0; i < num_tokens; ++i) sorted[i] = {data[i], i};
  std::sort(sorted.begin(), sorted.end());
  TokenGroups groups;
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (i == 0 || sorted[i].first != sorted[i - 1].first) {
      groups.starts.push_back(i);
      groups.rows.push_back(sorted[i].first);
    }
    groups.tokens.push_back(sorted[i].second);
  }
  groups.starts.push_back(num_tokens);
  return groups;
}

// The dense gradient of a table: zeros, and a sum in each row that a token reads.
at::Tensor table_gradient(const at::Tensor& ds, const at::Tensor& indices, const at::Tensor& table,
                          bool is_needed) {
  if (!is_needed) return at::empty({0, table.size(1)}, table.options());
  const at::Tensor gradient = at::zeros(table.sizes(), table.options());
  const TokenGroups groups = group_tokens(indices);
  const int64_t num_groups = static_cast<int64_t>(groups.rows.size()), width = table.size(1);
  const Rows out = rows(gradient);
  at::parallel_for(0, num_groups, kGrainGroups, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(padded_width(width));
    for (int64_t g = begin; g < end; ++g) {
      const int64_t start = groups.starts[g];
      sum_group(ds.const_data_ptr<float>(), groups.tokens.data() + start,
                groups.starts[g + 1] - start, width, out, groups.rows[g], buffer.data());
    }
  });
  return gradient;
}

// Sums [num_blocks, 2, padded] in the order of the blocks.
at::Tensor add_blocks(const at::Tensor& partial) {
  at::Tensor total = at::zeros({2, partial.size(2)}, partial.options());
  const int64_t size = total.numel();
  const float* from = partial.const_data_ptr<float>();
  float* to = total.mutable_data_ptr<float>();
  for (int64_t block = 0; block < partial.size(0); ++block, from += size) {
    for (int64_t j = 0; j < size; ++j) to[j] += from[j];
  }
  return total;
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
  const at::Tensor padded_shift = padded_copy(shift);
  const int64_t num_tokens = ids.size(0);
  const at::Tensor y = at::empty({num_tokens, word.size(1)}, word.options());
  const at::Tensor mean = at::empty({num_tokens}, word.options().dtype(at::kFloat));
  const at::Tensor rstd = at::empty({num_tokens}, mean.options());
  const LayerNormParameters parameters{in.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const EmbedOutputs out{rows(y), mean.mutable_data_ptr<float>(), rstd.mutable_data_ptr<float>()};
  at::parallel_for(0, num_tokens, kGrainRows, [&](int64_t begin, int64_t end) {
    forward_rows(in.view, parameters, out, begin, end);
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
  const int64_t num_tokens = ids.size(0), width = word.size(1), padded = padded_width(width);
  const int64_t num_blocks = num_layernorm_blocks(num_tokens);
  const at::Tensor ds = at::empty({num_tokens, padded}, means.options());
  const at::Tensor partial = at::zeros({num_blocks, 2, padded}, means.options());
  float* all_sums = partial.mutable_data_ptr<float>();
  at::parallel_for(0, num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sums = all_sums + block * 2 * padded;
      const int64_t first = block * kLayerNormBlockRows;
      backward_rows(const_rows(dense_grad), in.view, in.weight.const_data_ptr<float>(),
                    {means.const_data_ptr<float>(), rstds.const_data_ptr<float>()},
                    ds.mutable_data_ptr<float>(), {sums, sums + padded, nullptr}, first,
                    std::min(first + kLayerNormBlockRows, num_tokens));
    }
  });
  const at::Tensor total = add_blocks(partial);
  const auto vector = [&](int64_t i, bool is_needed) {
    return total[i].narrow(0, 0, is_needed ? width : 0).to(weight.scalar_type(), false, true);
  };
  return {table_gradient(ds, in.ids, word, needs[0]),
          table_gradient(ds, in.positions, position, needs[1]),
          table_gradient(ds, in.types, type, needs[2]), vector(0, needs[3]), vector(1, needs[4])};
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("embed_forward", &embed_forward_cpu);
  m.impl("embed_backward", &embed_backward_cpu);
}

}  // namespace sbrrt
