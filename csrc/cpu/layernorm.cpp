// dropout_add_layernorm on the CPU: LN(residual + dropout(x + bias)), its backward and its JVP.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>

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

#define SBRRT_KERNEL "cpu/layernorm_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

void forward_rows(const ResidualInputs& in, const LayerNormParameters& parameters,
                  const ResidualOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                  int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_forward, in, parameters, out, buffers, begin, end)
}

void backward_rows(const OutputGrad& dy, const ForwardInputs& in, const ResidualGradients& out,
                   const LayerNormSums& sums, LayerNormBuffers& buffers, int64_t begin,
                   int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_backward, dy, in, out, sums, buffers, begin, end)
}

void jvp_rows(const ConstRows& tx, const ConstRows& tresidual, const ForwardInputs& in,
              const Rows& out, const Rows& low, LayerNormBuffers& buffers, int64_t begin,
              int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_jvp, tx, tresidual, in, out, low, buffers, begin, end)
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
  for_each_layernorm_block(out.size(0), out.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                         int64_t end) {
    forward_rows(dense.view, parameters, outputs, buffers, begin, end);
  });
}

void LayerNormBackward::run_cpu() const {
  const DenseInputs dense(kOp, in, dropout);
  const DenseStatistics saved(statistics);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor dense_product = product ? with_dense_rows(*product) : dense_grad;
  const OutputGrad dy{const_rows(dense_grad),
                          product ? const_rows(dense_product) : ConstRows{nullptr, 0, false}};
  const ResidualGradients gradients{rows(dx), rows(dresidual)};
  const int64_t num_rows = dx.size(0), padded = padded_width(dx.size(1));
  const int64_t num_blocks = dbias ? num_layernorm_blocks(num_rows) : 0;
  const AlignedArray<float> sums(num_blocks * 3 * padded);
  for_each_layernorm_block(num_rows, dx.size(1), [&](auto& buffers, int64_t block, int64_t begin,
                                                     int64_t end) {
    float* s = sums.get() + block * 3 * padded;
    const auto wanted = dbias ? LayerNormSums{s, s + padded, s + 2 * padded}
                              : LayerNormSums{nullptr, nullptr, nullptr};
    backward_rows(dy, dense.forward(saved.mean, saved.rstd), gradients, wanted, buffers, begin,
                  end);
  });
  if (!dbias) return;
  write_parameter_gradient(sums.get(), num_blocks, 3 * padded, *dweight);
  write_parameter_gradient(sums.get() + padded, num_blocks, 3 * padded, *dshift);
  write_parameter_gradient(sums.get() + 2 * padded, num_blocks, 3 * padded, *dbias);
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
