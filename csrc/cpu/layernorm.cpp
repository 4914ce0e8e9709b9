// dropout_add_layernorm on the CPU: LN(residual + dropout(x + bias)), its backward and its tangent.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/layernorm_checks.h"
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
  Rows y;
  float *mean, *rstd;  // [num_rows]
};

struct ResidualGradients {
  Rows dx, dresidual;
};

// What the backward and the tangent know of the forward.
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

void backward_rows(const ConstRows& dy, const ForwardInputs& in, const ResidualGradients& out,
                   const LayerNormSums& sums, LayerNormBuffers& buffers, int64_t begin,
                   int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_backward, dy, in, out, sums, buffers, begin, end)
}

void jvp_rows(const ConstRows& tx, const ConstRows& tresidual, const ForwardInputs& in,
              const Rows& out, LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_jvp, tx, tresidual, in, out, buffers, begin, end)
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
             dropout_rows(op, dropout.p, dropout.rng, dropout.site, offsets, x.size(1))} {}

  ForwardInputs forward(const at::Tensor& mean, const at::Tensor& rstd) const {
    return {view, weight.const_data_ptr<float>(),
            {mean.const_data_ptr<float>(), rstd.const_data_ptr<float>()}};
  }
};

at::Tensor empty_as(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> dropout_add_layernorm_forward_cpu(
    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "dropout_add_layernorm_forward";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_forward(op, tensors, shift, eps, dropout, at::kCPU);
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor padded_shift = padded_floats(shift);
  const LayerNormParameters parameters{in.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const at::Tensor y = empty_as(residual);
  const at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const at::Tensor rstd = at::empty({x.size(0)}, mean.options());
  const ResidualOutputs out{rows(y), mean.mutable_data_ptr<float>(),
                            rstd.mutable_data_ptr<float>()};
  for_each_layernorm_block(x.size(0), x.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                     int64_t end) {
    forward_rows(in.view, parameters, out, buffers, begin, end);
  });
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
dropout_add_layernorm_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                   const at::Tensor& bias, const at::Tensor& residual,
                                   const at::Tensor& weight, const at::Tensor& mean,
                                   const at::Tensor& rstd, double p, const at::Tensor& rng,
                                   int64_t site, const at::Tensor& offsets,
                                   bool need_weight_grads) {
  constexpr auto op = "dropout_add_layernorm_backward";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_backward(op, grad, tensors, mean, rstd, dropout, at::kCPU);
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const at::Tensor dx = empty_as(x), dresidual = empty_as(residual);
  const int64_t num_rows = x.size(0), padded = padded_width(x.size(1));
  const int64_t num_blocks = need_weight_grads ? num_layernorm_blocks(num_rows) : 0;
  const AlignedArray<float> sums(num_blocks * 3 * padded);
  for_each_layernorm_block(num_rows, x.size(1), [&](auto& buffers, int64_t block, int64_t begin,
                                                    int64_t end) {
    float* s = sums.get() + block * 3 * padded;
    const auto wanted = need_weight_grads ? LayerNormSums{s, s + padded, s + 2 * padded}
                                          : LayerNormSums{nullptr, nullptr, nullptr};
    backward_rows(const_rows(dense_grad), in.forward(means, rstds), {rows(dx), rows(dresidual)},
                  wanted, buffers, begin, end);
  });
  const auto gradient = [&](int which, const at::Tensor& parameter) {
    return parameter_gradient(sums.get() + which * padded, num_blocks, 3 * padded, parameter,
                              need_weight_grads);
  };
  return {dx, dresidual, gradient(2, bias), gradient(0, weight), gradient(1, weight)};
}

at::Tensor dropout_add_layernorm_jvp_cpu(const at::Tensor& x_tangent,
                                         const at::Tensor& residual_tangent, const at::Tensor& x,
                                         const at::Tensor& bias, const at::Tensor& residual,
                                         const at::Tensor& weight, const at::Tensor& mean,
                                         const at::Tensor& rstd, double p, const at::Tensor& rng,
                                         int64_t site, const at::Tensor& offsets) {
  constexpr auto op = "dropout_add_layernorm_jvp";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  check_layernorm_jvp(op, x_tangent, residual_tangent, tensors, mean, rstd, dropout, at::kCPU);
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor tx = with_dense_rows(x_tangent), tresidual = with_dense_rows(residual_tangent);
  const at::Tensor means = mean.contiguous(), rstds = rstd.contiguous();
  const at::Tensor out = empty_as(residual);
  for_each_layernorm_block(x.size(0), x.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                     int64_t end) {
    jvp_rows(const_rows(tx), const_rows(tresidual), in.forward(means, rstds), rows(out), buffers,
             begin, end);
  });
  return out;
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("dropout_add_layernorm_forward", &dropout_add_layernorm_forward_cpu);
  m.impl("dropout_add_layernorm_backward", &dropout_add_layernorm_backward_cpu);
  m.impl("dropout_add_layernorm_jvp", &dropout_add_layernorm_jvp_cpu);
}

}  // namespace sbrrt
