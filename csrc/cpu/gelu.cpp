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

// All arguments are checked; `y` may be x.
void forward_into(const at::Tensor& x, const at::Tensor& bias, const Rows& y) {
  const DenseInputs in(x, bias);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   forward_rows(in.view, y, buffers, begin, end);
                 });
}

// out = change * slope; `out` may be change. Returns the column sums, or nothing [0].
at::Tensor change_into(const at::Tensor& change, const at::Tensor& x, const at::Tensor& bias,
                       bool need_sums, const Rows& out) {
  const DenseInputs in(x, bias);
  const at::Tensor dense = with_dense_rows(change);
  const int64_t padded = padded_width(x.size(1));
  const int64_t num_blocks = need_sums ? num_row_blocks(x.size(0)) : 0;
  const AlignedArray<float> sums(num_blocks * padded);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t block, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   float* s = need_sums ? sums.get() + block * padded : nullptr;
                   change_rows(in.view, const_rows(dense), out, s, buffers, begin, end);
                 });
  return parameter_gradient(sums.get(), num_blocks, padded, bias, need_sums);
}

}  // namespace

at::Tensor bias_gelu_forward_cpu(const at::Tensor& x, const at::Tensor& bias) {
  check_gelu("bias_gelu_forward", x, bias, at::kCPU);
  const at::Tensor y = at::empty(x.sizes(), x.options());
  forward_into(x, bias, rows(y));
  return y;
}

void bias_gelu_forward_into_cpu(const at::Tensor& x, const at::Tensor& bias,
                                const at::Tensor& out) {
  constexpr auto op = "bias_gelu_forward_into";
  const WriteSet writes = gelu_write_set(op, x, bias, out, at::kCPU);
  forward_into(x, bias, rows(out));
  writes.count_change();
}

std::tuple<at::Tensor, at::Tensor> bias_gelu_backward_cpu(const at::Tensor& grad,
                                                          const at::Tensor& x,
                                                          const at::Tensor& bias,
                                                          bool need_weight_grads) {
  check_gelu_change("bias_gelu_backward", "grad", grad, x, bias, at::kCPU);
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  return {dx, change_into(grad, x, bias, need_weight_grads, rows(dx))};
}

at::Tensor bias_gelu_backward_into_cpu(const at::Tensor& grad, const at::Tensor& x,
                                       const at::Tensor& bias, bool need_weight_grads,
                                       const at::Tensor& dx) {
  constexpr auto op = "bias_gelu_backward_into";
  const WriteSet writes =
      gelu_change_write_set(op, "grad", grad, x, bias, "dx", dx, at::kCPU);
  const at::Tensor dbias = change_into(grad, x, bias, need_weight_grads, rows(dx));
  writes.count_change();
  return dbias;
}

at::Tensor bias_gelu_jvp_cpu(const at::Tensor& x_tangent, const at::Tensor& x,
                             const at::Tensor& bias) {
  check_gelu_change("bias_gelu_jvp", "x_tangent", x_tangent, x, bias, at::kCPU);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  change_into(x_tangent, x, bias, false, rows(out));
  return out;
}

void bias_gelu_jvp_into_cpu(const at::Tensor& x_tangent, const at::Tensor& x,
                            const at::Tensor& bias, const at::Tensor& out) {
  constexpr auto op = "bias_gelu_jvp_into";
  const WriteSet writes =
      gelu_change_write_set(op, "x_tangent", x_tangent, x, bias, "out", out, at::kCPU);
  change_into(x_tangent, x, bias, false, rows(out));
  writes.count_change();
}

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) {
  m.impl("bias_gelu_forward", &bias_gelu_forward_cpu);
  m.impl("bias_gelu_backward", &bias_gelu_backward_cpu);
  m.impl("bias_gelu_jvp", &bias_gelu_jvp_cpu);
  m.impl("bias_gelu_forward_into", &bias_gelu_forward_into_cpu);
  m.impl("bias_gelu_backward_into", &bias_gelu_backward_into_cpu);
  m.impl("bias_gelu_jvp_into", &bias_gelu_jvp_into_cpu);
}

}  // namespace sbrrt
