// dropout_add_layernorm on CUDA: from tensors to the launchers of layernorm.h.
#include <optional>
#include <utility>

#include "common/layernorm_op.h"
#include "cuda/binding.h"
#include "cuda/layernorm.h"

namespace sbrrt {

using namespace cuda;

namespace {

void check_kernel(const char* op, const ResidualTensors& t) {
  TORCH_CHECK_TYPE(t.residual.scalar_type() == at::kFloat ||
                       t.residual.scalar_type() == t.x.scalar_type(),
                   "sbrrt::", op, ": residual must have dtype float32 or that of x, ",
                   t.x.scalar_type(), ", got ", describe(t.residual));
  TORCH_CHECK_VALUE(t.x.size(1) <= kMaxLayerNormWidth, "sbrrt::", op,
                    ": rows may have at most ", kMaxLayerNormWidth, " features on CUDA, got ",
                    t.x.size(1));
}

// Dense forms of the tensors, which must live until the launch.
struct DenseInputs {
  at::Tensor x, residual, bias, weight, rng, offsets;
  ResidualParams params;

  DenseInputs(const ResidualTensors& t, const DropoutArguments& dropout)
      : x(with_dense_rows(t.x)),
        residual(with_dense_rows(t.residual)),
        bias(floats(t.bias)),
        weight(floats(t.weight)),
        rng(dropout.rng.contiguous()),
        offsets(dropout.offsets.contiguous()),
        params{x.size(0),
               static_cast<int>(x.size(1)),
               element_type(x),
               element_type(residual),
               const_rows(x),
               const_rows(residual),
               bias.const_data_ptr<float>(),
               dropout_params(dropout, rng, offsets)} {}
};

// Dense forms of the tangents, as above.
struct DenseTangents {
  at::Tensor x, residual;

  DenseTangents(const DenseInputs& dense, TensorRef x_, TensorRef residual_)
      : x(with_dense_rows(x_.to(dense.x.scalar_type()))),
        residual(with_dense_rows(residual_.to(dense.residual.scalar_type()))) {}
};

Launch launch_of(const char* op, const ResidualTensors& t, const DropoutArguments& dropout,
                 TensorRef other) {
  check_kernel(op, t);
  return Launch(op, t.x, {t.bias, t.residual, t.weight, dropout.rng, dropout.offsets, other});
}

}  // namespace

void LayerNormForward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, dropout, out);
  const DenseInputs dense(in, dropout);
  const at::Tensor dense_shift = floats(shift);
  const auto tangents = x_tangent ? std::optional<DenseTangents>(
                                        std::in_place, dense, *x_tangent, *residual_tangent)
                                  : std::nullopt;
  launch(&layernorm_forward,
         LayerNormForwardParams{
             dense.params, dense.weight.const_data_ptr<float>(),
             dense_shift.const_data_ptr<float>(), static_cast<float>(eps), rows(out),
             optional_rows(low), statistics.mean.mutable_data_ptr<float>(),
             statistics.rstd.mutable_data_ptr<float>(),
             tangents ? ResidualTangentParams{tangents->x.size(0), const_rows(tangents->x),
                                              const_rows(tangents->residual), rows(*out_tangent),
                                              optional_rows(low_tangent)}
                      : ResidualTangentParams{}});
}

void LayerNormBackward::run_cuda() const {
  const Launch launch = launch_of(kOp, in, dropout, grad);
  const DenseInputs dense(in, dropout);
  const at::Tensor dense_grad = with_dense_rows(grad.to(dense.residual.scalar_type()));
  const at::Tensor dense_product =
      product ? with_dense_rows(product->to(dense.x.scalar_type())) : at::Tensor();
  const at::Tensor means = statistics.mean.contiguous(), rstds = statistics.rstd.contiguous();
  const at::Tensor bounds = segments ? segments->contiguous() : at::Tensor();
  launch(&layernorm_backward,
         LayerNormBackwardParams{
             dense.params, const_rows(dense_grad),
             product ? const_rows(dense_product) : ConstRows{nullptr, 0},
             dense.weight.const_data_ptr<float>(), means.const_data_ptr<float>(),
             rstds.const_data_ptr<float>(), rows(dx), rows(dresidual),
             sums ? sums->size(0) : 0, sums ? bounds.const_data_ptr<int32_t>() : nullptr,
             optional_rows(sums)});
}

void LayerNormJvp::run_cuda() const {
  const Launch launch = launch_of(kOp, in, dropout, out);
  const DenseInputs dense(in, dropout);
  const DenseTangents tangents(dense, x_tangent, residual_tangent);
  const at::Tensor means = statistics.mean.contiguous(), rstds = statistics.rstd.contiguous();
  launch(&layernorm_jvp,
         LayerNormJvpParams{dense.params, const_rows(tangents.x), const_rows(tangents.residual),
                            dense.weight.const_data_ptr<float>(), means.const_data_ptr<float>(),
                            rstds.const_data_ptr<float>(), rows(out), optional_rows(low)});
}

}  // namespace sbrrt
