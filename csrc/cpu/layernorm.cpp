// dropout_add_layernorm on the CPU: LN(residual + dropout(x + bias)), its backward and its tangent.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
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
  Rows y, low;         // low is a bfloat16 copy of y, or has no data
  float *mean, *rstd;  // [num_rows]
};

struct ResidualGradients {
  Rows dx, dresidual;
};

// The gradient of y: grad + product, where product may have no data.
struct ResidualChange {
  ConstRows grad, product;
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

void backward_rows(const ResidualChange& dy, const ForwardInputs& in, const ResidualGradients& out,
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
             dropout_rows(op, dropout.p, dropout.rng, dropout.site, offsets, x.size(1))} {}

  ForwardInputs forward(const at::Tensor& mean, const at::Tensor& rstd) const {
    return {view, weight.const_data_ptr<float>(),
            {mean.const_data_ptr<float>(), rstd.const_data_ptr<float>()}};
  }
};

at::Tensor empty_as(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options());
}

using OptionalTensor = std::optional<at::Tensor>;

Rows optional_rows(const OptionalTensor& tensor) {
  return tensor ? rows(*tensor) : Rows{nullptr, 0, false};
}

void forward_into(const char* op, const ResidualTensors& tensors, const at::Tensor& shift,
                  double eps, const DropoutArguments& dropout, const ResidualOutputs& out) {
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor padded_shift = padded_floats(shift);
  const LayerNormParameters parameters{in.weight.const_data_ptr<float>(),
                                       padded_shift.const_data_ptr<float>(),
                                       static_cast<float>(eps)};
  for_each_layernorm_block(in.x.size(0), in.x.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                           int64_t end) {
    forward_rows(in.view, parameters, out, buffers, begin, end);
  });
}

struct SavedStatistics {
  at::Tensor mean, rstd;  // contiguous

  SavedStatistics(const at::Tensor& mean_, const at::Tensor& rstd_)
      : mean(mean_.contiguous()), rstd(rstd_.contiguous()) {}
};

using ParameterGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // bias, weight, shift

ParameterGradients backward_into(const char* op, const at::Tensor& grad,
                                 const OptionalTensor& product, const ResidualTensors& tensors,
                                 const SavedStatistics& saved, const DropoutArguments& dropout,
                                 bool need_weight_grads, const ResidualGradients& out) {
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad);
  const at::Tensor dense_product = product ? with_dense_rows(*product) : dense_grad;
  const ResidualChange dy{const_rows(dense_grad),
                          product ? const_rows(dense_product) : ConstRows{nullptr, 0, false}};
  const int64_t num_rows = in.x.size(0), padded = padded_width(in.x.size(1));
  const int64_t num_blocks = need_weight_grads ? num_layernorm_blocks(num_rows) : 0;
  const AlignedArray<float> sums(num_blocks * 3 * padded);
  for_each_layernorm_block(num_rows, in.x.size(1), [&](auto& buffers, int64_t block, int64_t begin,
                                                       int64_t end) {
    float* s = sums.get() + block * 3 * padded;
    const auto wanted = need_weight_grads ? LayerNormSums{s, s + padded, s + 2 * padded}
                                          : LayerNormSums{nullptr, nullptr, nullptr};
    backward_rows(dy, in.forward(saved.mean, saved.rstd), out, wanted, buffers, begin, end);
  });
  const auto gradient = [&](int which, const at::Tensor& parameter) {
    return parameter_gradient(sums.get() + which * padded, num_blocks, 3 * padded, parameter,
                              need_weight_grads);
  };
  return {gradient(2, tensors.bias), gradient(0, tensors.weight), gradient(1, tensors.weight)};
}

void jvp_into(const char* op, const at::Tensor& x_tangent, const at::Tensor& residual_tangent,
              const ResidualTensors& tensors, const SavedStatistics& saved,
              const DropoutArguments& dropout, const Rows& out, const Rows& low) {
  const DenseInputs in(op, tensors, dropout);
  const at::Tensor tx = with_dense_rows(x_tangent), tresidual = with_dense_rows(residual_tangent);
  for_each_layernorm_block(in.x.size(0), in.x.size(1), [&](auto& buffers, int64_t, int64_t begin,
                                                           int64_t end) {
    jvp_rows(const_rows(tx), const_rows(tresidual), in.forward(saved.mean, saved.rstd), out, low,
             buffers, begin, end);
  });
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
  const at::Tensor y = empty_as(residual);
  const at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const at::Tensor rstd = at::empty({x.size(0)}, mean.options());
  forward_into(op, tensors, shift, eps, dropout,
               {rows(y), optional_rows({}), mean.mutable_data_ptr<float>(),
                rstd.mutable_data_ptr<float>()});
  return {y, mean, rstd};
}

void dropout_add_layernorm_forward_into_cpu(
    const at::Tensor& x, const at::Tensor& bias, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& shift, double eps, double p, const at::Tensor& rng,
    int64_t site, const at::Tensor& offsets, const at::Tensor& out, const OptionalTensor& low,
    const at::Tensor& mean, const at::Tensor& rstd) {
  constexpr auto op = "dropout_add_layernorm_forward_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_forward_write_set(op, tensors, shift, eps, dropout, out, low,
                                                      mean, rstd, at::kCPU);
  forward_into(op, tensors, shift, eps, dropout,
               {rows(out), optional_rows(low), mean.mutable_data_ptr<float>(),
                rstd.mutable_data_ptr<float>()});
  writes.count_change();
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
  const at::Tensor dx = empty_as(x), dresidual = empty_as(residual);
  const auto [dbias, dweight, dshift] =
      backward_into(op, grad, {}, tensors, {mean, rstd}, dropout, need_weight_grads,
                    {rows(dx), rows(dresidual)});
  return {dx, dresidual, dbias, dweight, dshift};
}

ParameterGradients dropout_add_layernorm_backward_into_cpu(
    const at::Tensor& grad, const OptionalTensor& product, const at::Tensor& x,
    const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, bool need_weight_grads, const at::Tensor& dx,
    const at::Tensor& dresidual) {
  constexpr auto op = "dropout_add_layernorm_backward_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_backward_write_set(op, grad, product, tensors, mean, rstd,
                                                       dropout, dx, dresidual, at::kCPU);
  ParameterGradients gradients = backward_into(op, grad, product, tensors, {mean, rstd}, dropout,
                                               need_weight_grads, {rows(dx), rows(dresidual)});
  writes.count_change();
  return gradients;
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
  const at::Tensor out = empty_as(residual);
  jvp_into(op, x_tangent, residual_tangent, tensors, {mean, rstd}, dropout, rows(out),
           optional_rows({}));
  return out;
}

void dropout_add_layernorm_jvp_into_cpu(
    const at::Tensor& x_tangent, const at::Tensor& residual_tangent, const at::Tensor& x,
    const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, double p, const at::Tensor& rng, int64_t site,
    const at::Tensor& offsets, const at::Tensor& out, const OptionalTensor& low) {
  constexpr auto op = "dropout_add_layernorm_jvp_into";
  const ResidualTensors tensors{x, bias, residual, weight};
  const DropoutArguments dropout{p, rng, site, offsets};
  const WriteSet writes = layernorm_jvp_write_set(op, x_tangent, residual_tangent, tensors, mean,
                                                  rstd, dropout, out, low, at::kCPU);
  jvp_into(op, x_tangent, residual_tangent, tensors, {mean, rstd}, dropout, rows(out),
           optional_rows(low));
  writes.count_change();
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("dropout_add_layernorm_forward", &dropout_add_layernorm_forward_cpu);
  m.impl("dropout_add_layernorm_backward", &dropout_add_layernorm_backward_cpu);
  m.impl("dropout_add_layernorm_jvp", &dropout_add_layernorm_jvp_cpu);
  m.impl("dropout_add_layernorm_forward_into", &dropout_add_layernorm_forward_into_cpu);
  m.impl("dropout_add_layernorm_backward_into", &dropout_add_layernorm_backward_into_cpu);
  m.impl("dropout_add_layernorm_jvp_into", &dropout_add_layernorm_jvp_into_cpu);
}

}  // namespace sbrrt
