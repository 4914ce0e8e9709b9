// dropout_add_layernorm on the CPU: LN(residual + dropout(x + bias)), its backward and its tangent.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

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

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/layernorm_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainRows = 32;  // 12k elements, near 10 us: well above the cost of a fork

void forward_rows(const ResidualInputs& in, const LayerNormParameters& parameters,
                  const ResidualOutputs& out, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_forward, in, parameters, out, begin, end)
}

void backward_rows(const ConstRows& dy, const ResidualInputs& in, const float* weight,
                   const LayerNormStatistics& statistics, const ResidualGradients& out,
                   const LayerNormSums& sums, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_backward, dy, in, weight, statistics, out, sums, begin, end)
}

void jvp_rows(const ConstRows& tx, const ConstRows& tresidual, const ResidualInputs& in,
              const float* weight, const LayerNormStatistics& statistics, const Rows& out,
              int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(layernorm_jvp, tx, tresidual, in, weight, statistics, out, begin, end)
}

// Dense forms of the tensors, which must live as long as `view` is used.
struct DenseInputs {
  at::Tensor x, residual, bias, weight, offsets;
  ResidualInputs view;

  DenseInputs(const char* op, const ResidualTensors& t, const DropoutArguments& dropout)
      : x(with_dense_rows(t.x)),
        residual(with_dense_rows(t.residual)),
        bias(padded_copy(t.bias)),
        weight(padded_copy(t.weight)),
        offsets(dropout.offsets.contiguous()),
        view{x.size(1), const_rows(x), const_rows(residual), bias.const_data_ptr<float>(),
             dropout_rows(op, dropout.p, dropout.rng, dropout.site, offsets, x.size(1))} {}
};

at::Tensor empty_as(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options());
}

// partial [num_blocks, 3, padded] -> [3, padded], block after block.
at::Tensor add_blocks(const at::Tensor& partial) {
  at::Tensor total = at::zeros({partial.size(1), partial.size(2)}, partial.options());
  const int64_t size = total.numel();
  const float* from = partial.const_data_ptr<float>();
  float* to = total.mutable_data_ptr<float>();
  for (int64_t block = 0; block < partial.size(0); ++block, from += size) {
    for (int64_t j = 0; j < size; ++j) to[j] += from[j];
  }
  return total;
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
  const at::Tensor padded_shift = padded_copy(shift);
  const LayerNormParameters parameters{in.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  const at::Tensor y = empty_as(residual);
  const at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const at::Tensor rstd = at::empty({x.size(0)}, mean.options());
  const ResidualOutputs out{rows(y), mean.mutable_data_ptr<float>(),
                            rstd.mutable_data_ptr<float>()};
  at::parallel_for(0, x.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
    forward_rows(in.view, parameters, out, begin, end);
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
  const int64_t num_rows = x.size(0), width = x.size(1), padded = padded_width(width);
  const int64_t num_blocks = num_layernorm_blocks(num_rows);
  const at::Tensor partial =
      at::zeros({need_weight_grads ? num_blocks : 0, 3, padded}, means.options());
  float* sums = need_weight_grads ? partial.mutable_data_ptr<float>() : nullptr;
  at::parallel_for(0, num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* s = sums == nullptr ? nullptr : sums + block * 3 * padded;
      const int64_t first = block * kLayerNormBlockRows;
      backward_rows(const_rows(dense_grad), in.view, in.weight.const_data_ptr<float>(),
                    {means.const_data_ptr<float>(), rstds.const_data_ptr<float>()},
                    {rows(dx), rows(dresidual)},
                    {s, s == nullptr ? nullptr : s + padded, s == nullptr ? nullptr : s + 2 * padded},
                    first, std::min(first + kLayerNormBlockRows, num_rows));
    }
  });
  const at::Tensor total = add_blocks(partial).narrow(1, 0, need_weight_grads ? width : 0);
  return {dx, dresidual, total[2].to(bias.scalar_type(), false, true),
          total[0].to(weight.scalar_type(), false, true),
          total[1].to(weight.scalar_type(), false, true)};
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
  at::parallel_for(0, x.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
    jvp_rows(const_rows(tx), const_rows(tresidual), in.view, in.weight.const_data_ptr<float>(),
             {means.const_data_ptr<float>(), rstds.const_data_ptr<float>()}, rows(out), begin, end);
  });
  return out;
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("dropout_add_layernorm_forward", &dropout_add_layernorm_forward_cpu);
  m.impl("dropout_add_layernorm_backward", &dropout_add_layernorm_backward_cpu);
  m.impl("dropout_add_layernorm_jvp", &dropout_add_layernorm_jvp_cpu);
}

}  // namespace sbrrt
