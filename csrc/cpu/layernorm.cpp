// dropout_add_layernorm on the CPU: LN(residual + dropout(x + bias)), its backward and its JVP.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/layernorm_op.h"
#include "cpu/layernorm.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

struct ResidualInputs {
  int64_t width;
  ConstRows x, residual;
  const float* bias;  // [padded_width(width)]
  DropoutRows dropout;
};

struct ResidualOutputs {
  Rows y, low;         // low is a bfloat16 copy of y, or has no data
  float *mean, *rstd;  // [num_rows]
};

// Of the rows from `first` on; row n of them is row first + n of the others.
struct ResidualTangents {
  int64_t first;
  ConstRows x, residual;
  Rows y, low;  // as in ResidualOutputs
};

struct ForwardRows {
  const ResidualInputs& in;
  const LayerNormParameters& parameters;
  const ResidualOutputs& out;
  const ResidualTangents& tangents;
};

struct ResidualGradients {
  Rows dx, dresidual;
};

// The gradient of y: grad + product, where product may have no data.
struct OutputGrad {
  ConstRows grad, product;
};

// What backward and JVP know of the forward.
struct ForwardInputs {
  const ResidualInputs& residual;
  const float* weight;  // [padded_width(width)]
  LayerNormStatistics statistics;
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL_UP_TO_BF16
#define SBRRT_KERNEL "cpu/layernorm_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

void forward_rows(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_UP_TO_BF16(layernorm_forward, rows, buffers, begin, end)
}

void backward_rows(const OutputGrad& dy, const ForwardInputs& in, const ResidualGradients& out,
                   const LayerNormSums& sums, LayerNormBuffers& buffers, int64_t begin,
                   int64_t end) {
  SBRRT_RETURN_UP_TO_BF16(layernorm_backward, dy, in, out, sums, buffers, begin, end)
}

// Rows of a segment whose sums one thread adds up, so that threads share long segments.
struct SegmentBlock {
  int64_t segment, begin, end;
  int64_t part;  // its number among the parts of segments, or -1: it writes the segment's sums
};

// The blocks of all segments in their order, none of them empty. They depend on segments alone, so
// the sums do not depend on the number of threads.
std::vector<SegmentBlock> segment_blocks(const char* op, const at::Tensor& segments,
                                         int64_t num_rows, int64_t width) {
  const int32_t* bounds = segments.const_data_ptr<int32_t>();
  const int64_t num_segments = segments.size(0) - 1;
  TORCH_CHECK_VALUE(bounds[0] == 0 && bounds[num_segments] == num_rows &&
                        std::is_sorted(bounds, bounds + num_segments + 1),
                    "sbrrt::", op, ": segments must ascend from 0 to the number of rows, ",
                    num_rows);
  std::vector<SegmentBlock> blocks;
  int64_t num_parts = 0;
  for (int64_t segment = 0; segment < num_segments; ++segment) {
    const int64_t begin = bounds[segment], end = bounds[segment + 1];
    const bool is_one = end - begin <= kLayerNormBlockRows && width == padded_width(width);
    for (int64_t row = begin; row < end; row += kLayerNormBlockRows) {
      blocks.push_back({segment, row, std::min(row + kLayerNormBlockRows, end),
                        is_one ? -1 : num_parts++});
    }
  }
  return blocks;
}

// Calls run(buffers, block) for every block, on all threads, whose numbers of rows are alike.
template <typename F>
void for_each_segment_block(const std::vector<SegmentBlock>& blocks, int64_t num_rows,
                            int64_t width, F run) {
  at::parallel_for(0, num_rows, kLayerNormBlockRows, [&](int64_t begin, int64_t end) {
    LayerNormBuffers buffers(width);
    auto block = std::partition_point(blocks.begin(), blocks.end(), [&](const SegmentBlock& b) {
      return b.begin < begin;
    });
    for (; block != blocks.end() && block->begin < end; ++block) run(buffers, *block);
  });
}

// The sums of segments that are not written, from those of their parts [3, padded_width(width)] in
// their order.
void add_segment_parts(const std::vector<SegmentBlock>& blocks, const float* part,
                       const at::Tensor& sums) {
  const int64_t width = sums.size(2), padded = padded_width(width);
  auto block = blocks.begin();
  for (int64_t segment = 0; segment < sums.size(0); ++segment) {
    if (block != blocks.end() && block->segment == segment && block->part < 0) {
      ++block;
      continue;
    }
    float* to = sums.mutable_data_ptr<float>() + segment * sums.stride(0);
    std::fill_n(to, 3 * width, 0.0f);
    for (; block != blocks.end() && block->segment == segment; ++block) {
      for (int64_t kind = 0; kind < 3; ++kind, part += padded) {
        for (int64_t j = 0; j < width; ++j) to[kind * width + j] += part[j];
      }
    }
  }
}

void jvp_rows(const ConstRows& tx, const ConstRows& tresidual, const ForwardInputs& in,
              const Rows& out, const Rows& low, LayerNormBuffers& buffers, int64_t begin,
              int64_t end) {
  SBRRT_RETURN_UP_TO_BF16(layernorm_jvp, tx, tresidual, in, out, low, buffers, begin, end)
}

// Dense forms of the tensors, which must live as long as `view` is used.
struct DenseInputs {
  at::Tensor x, residual, bias, weight, offsets;
  ResidualInputs view;

  DenseInputs(const char* op, const ResidualTensors& t, const DropoutArguments& dropout)
      : x(with_dense_rows(t.x)),
        residual(with_dense_rows(t.residual)),
        bias(padded_floats(t.bias)),
        weight(padded_floats(t.weight)),
        offsets(dropout.offsets.contiguous()),
        view{x.size(1), const_rows(x), const_rows(residual), bias.const_data_ptr<float>(),
             dropout_rows(op, dropout, offsets, x.size(1))} {}

  ForwardInputs forward(const at::Tensor& mean, const at::Tensor& rstd) const {
    return {view, weight.const_data_ptr<float>(),
            {mean.const_data_ptr<float>(), rstd.const_data_ptr<float>()}};
  }
};

Rows optional_rows(MaybeTensorRef tensor) {
  return tensor ? rows(*tensor) : Rows{nullptr, 0, false};
}

struct DenseStatistics {
  at::Tensor mean, rstd;  // contiguous

  explicit DenseStatistics(const StatisticsTensors& s)
      : mean(s.mean.contiguous()), rstd(s.rstd.contiguous()) {}
};

}  // namespace

void LayerNormForward::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const at::Tensor padded_shift = padded_floats(shift);
  const LayerNormParameters parameters{dense.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const ResidualOutputs outputs{rows(out), optional_rows(low),
                                statistics.mean.mutable_data_ptr<float>(),
                                statistics.rstd.mutable_data_ptr<float>()};
  const int64_t num_rows = out.size(0), num_tangents = x_tangent ? x_tangent->size(0) : 0;
  const at::Tensor tx = x_tangent ? with_dense_rows(*x_tangent) : at::Tensor();
  const at::Tensor tresidual = x_tangent ? with_dense_rows(*residual_tangent) : at::Tensor();
  const ConstRows none{nullptr, 0, false};
  const ResidualTangents tangents{num_rows - num_tangents, x_tangent ? const_rows(tx) : none,
                                  x_tangent ? const_rows(tresidual) : none,
                                  optional_rows(out_tangent), optional_rows(low_tangent)};
  const ForwardRows forward{dense.view, parameters, outputs, tangents};
  const auto run = [&](auto& buffers, int64_t, int64_t begin, int64_t end) {
    forward_rows(forward, buffers, begin, end);
  };
  for_each_layernorm_block(num_rows, out.size(1), run, num_tangents);
}

void LayerNormBackward::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const DenseStatistics saved(statistics);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor dense_product = product ? with_dense_rows(*product) : dense_grad;
  const OutputGrad dy{const_rows(dense_grad),
                          product ? const_rows(dense_product) : ConstRows{nullptr, 0, false}};
  const ResidualGradients gradients{rows(dx), rows(dresidual)};
  const int64_t num_rows = dx.size(0), width = dx.size(1), padded = padded_width(width);
  const ForwardInputs inputs = dense.forward(saved.mean, saved.rstd);
  if (!sums) {
    for_each_layernorm_block(num_rows, width, [&](auto& buffers, int64_t, int64_t begin,
                                                  int64_t end) {
      backward_rows(dy, inputs, gradients, {nullptr, nullptr, nullptr}, buffers, begin, end);
    });
    return;
  }
  const std::vector<SegmentBlock> blocks =
      segment_blocks(kOp, segments->contiguous(), num_rows, width);
  const int64_t num_parts = std::count_if(blocks.begin(), blocks.end(),
                                          [](const SegmentBlock& b) { return b.part >= 0; });
  const AlignedArray<float> parts(num_parts * 3 * padded);
  float* written = sums->mutable_data_ptr<float>();
  const int64_t stride = sums->stride(0);
  for_each_segment_block(blocks, num_rows, width, [&](auto& buffers, const SegmentBlock& block) {
    float* bias = block.part < 0 ? written + block.segment * stride
                                 : parts.get() + block.part * 3 * padded;
    const LayerNormSums block_sums{bias + padded, bias + 2 * padded, bias};
    backward_rows(dy, inputs, gradients, block_sums, buffers, block.begin, block.end);
  });
  add_segment_parts(blocks, parts.get(), *sums);
}

void LayerNormJvp::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const DenseStatistics saved(statistics);
  const at::Tensor tx = with_dense_rows(x_tangent), tresidual = with_dense_rows(residual_tangent);
  for_each_layernorm_block(out.size(0), out.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                         int64_t end) {
    jvp_rows(const_rows(tx), const_rows(tresidual), dense.forward(saved.mean, saved.rstd),
             rows(out), optional_rows(low), buffers, begin, end);
  });
}

}  // namespace sbrrt
