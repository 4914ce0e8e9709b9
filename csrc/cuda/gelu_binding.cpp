// bias_gelu on CUDA: from tensors to the launchers of gelu.h.
#include "common/gelu_op.h"
#include "cuda/binding.h"
#include "cuda/gelu.h"

namespace sbrrt {

using namespace cuda;

namespace {

// Backward and JVP: out = grad * gelu'(x + bias), where grad is a gradient or a tangent. `sums`, if
// given, becomes the column sums.
void run_grad(const char* op, TensorRef grad, TensorRef x, TensorRef bias, TensorRef out,
              MaybeTensorRef sums) {
  const Launch launch(op, x, {grad, bias, out});
  const at::Tensor dense = with_dense_rows(x), dense_bias = floats(bias);
  const at::Tensor dense_grad = with_dense_rows(grad.to(x.scalar_type()));
  const at::Tensor partial = empty_floats({sums ? gelu_row_blocks(x.size(0)) : 0, x.size(1)}, x);
  launch(&gelu_grad,
         GeluGradParams{x.size(0), x.size(1), element_type(x), const_rows(dense),
                        const_rows(dense_grad), dense_bias.const_data_ptr<float>(), rows(out),
                        sums ? partial.mutable_data_ptr<float>() : nullptr});
  if (sums) write_sums(launch, partial, {&*sums});
}

}  // namespace

void GeluForward::run_cuda() const {
  const Launch launch(kOp, x, {bias, out});
  const at::Tensor dense = with_dense_rows(x), dense_bias = floats(bias);
  const at::Tensor tangent =
      x_tangent ? with_dense_rows(x_tangent->to(x.scalar_type())) : at::Tensor();
  launch(&gelu_forward,
         GeluForwardParams{x.size(0), x.size(1), element_type(x), const_rows(dense),
                           dense_bias.const_data_ptr<float>(), rows(out),
                           x_tangent ? GeluTangentParams{tangent.size(0), const_rows(tangent),
                                                         rows(*out_tangent)}
                                     : GeluTangentParams{}});
}

void GeluBackward::run_cuda() const { run_grad(kOp, grad, x, bias, dx, dbias); }

void GeluJvp::run_cuda() const { run_grad(kOp, x_tangent, x, bias, out, {}); }

}  // namespace sbrrt
