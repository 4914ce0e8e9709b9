// bias_gelu on the CPU: gelu(x + bias) with the exact erf, its backward and its tangent.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/gelu_checks.h"
#include "cpu/gelu_tables.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

struct GeluInputs {
  int64_t width;
  ConstRows x;
  const float* bias;  // [padded_width(width)]
};

// A thread's rows, [padded_width(width)] each.
struct GeluBuffers {
  float *x, *change, *out;
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/gelu_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

// Rows per block of the column sums: fixed, so the sums do not depend on the number of threads.
constexpr int64_t kBlockRows = 32;  // 50k elements, near 10 us: well above the cost of a fork

void forward_rows(const GeluInputs& in, const Rows& out, const GeluBuffers& buffers, int64_t begin,
                  int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(gelu_forward, in, out, buffers, begin, end)
}

void change_rows(const GeluInputs& in, const ConstRows& change, const Rows& out, float* sums,
                 const GeluBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(gelu_change, in, change, out, sums, buffers, begin, end)
}

int64_t num_row_blocks(int64_t num_rows) { return (num_rows + kBlockRows - 1) / kBlockRows; }

// Calls run(block, buffers, begin, end) for every block of rows, on all threads.
template <typename F>
void for_each_block(int64_t num_rows, int64_t width, F run) {
  const int64_t padded = padded_width(width);
  at::parallel_for(0, num_row_blocks(num_rows), 1, [&](int64_t begin, int64_t end) {
    const AlignedArray<float> floats(3 * padded);
    const GeluBuffers buffers{floats.get(), floats.get() + padded, floats.get() + 2 * padded};
    for (int64_t block = begin; block < end; ++block) {
      run(block, buffers, block * kBlockRows, std::min((block + 1) * kBlockRows, num_rows));
    }
  });
}

struct DenseInputs {
  at::Tensor x, bias;
  GeluInputs view;

  DenseInputs(const at::Tensor& x_, const at::Tensor& bias_)
      : x(with_dense_rows(x_)),
        bias(padded_floats(bias_)),
        view{x.size(1), const_rows(x), bias.const_data_ptr<float>()} {}
};

}  // namespace

at::Tensor bias_gelu_forward_cpu(const at::Tensor& x, const at::Tensor& bias) {
  check_gelu("bias_gelu_forward", x, bias, at::kCPU);
  const DenseInputs in(x, bias);
  const at::Tensor y = at::empty(x.sizes(), x.options());
  const Rows out = rows(y);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   forward_rows(in.view, out, buffers, begin, end);
                 });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_gelu_backward_cpu(const at::Tensor& grad,
                                                          const at::Tensor& x,
                                                          const at::Tensor& bias,
                                                          bool need_weight_grads) {
  check_gelu_change("bias_gelu_backward", "grad", grad, x, bias, at::kCPU);
  const DenseInputs in(x, bias);
  const at::Tensor dense = with_dense_rows(grad), dx = at::empty(x.sizes(), x.options());
  const int64_t padded = padded_width(x.size(1));
  const int64_t num_blocks = need_weight_grads ? num_row_blocks(x.size(0)) : 0;
  const AlignedArray<float> sums(num_blocks * padded);
  const Rows out = rows(dx);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t block, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   float* s = need_weight_grads ? sums.get() + block * padded : nullptr;
                   change_rows(in.view, const_rows(dense), out, s, buffers, begin, end);
                 });
  return {dx, parameter_gradient(sums.get(), num_blocks, padded, bias, need_weight_grads)};
}

at::Tensor bias_gelu_jvp_cpu(const at::Tensor& x_tangent, const at::Tensor& x,
                             const at::Tensor& bias) {
  check_gelu_change("bias_gelu_jvp", "x_tangent", x_tangent, x, bias, at::kCPU);
  const DenseInputs in(x, bias);
  const at::Tensor dense = with_dense_rows(x_tangent), ty = at::empty(x.sizes(), x.options());
  const Rows out = rows(ty);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   change_rows(in.view, const_rows(dense), out, nullptr, buffers, begin, end);
                 });
  return ty;
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("bias_gelu_forward", &bias_gelu_forward_cpu);
  m.impl("bias_gelu_backward", &bias_gelu_backward_cpu);
  m.impl("bias_gelu_jvp", &bias_gelu_jvp_cpu);
}

}  // namespace sbrrt
