// bias_gelu on the CPU: gelu(x + bias) with the exact erf, its backward and its JVP.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/gelu_op.h"
#include "cpu/gelu_tables.h"
#include "cpu/row_blocks.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

struct GeluInputs {
  int64_t width;
  ConstRows x;
  const float* bias;  // [padded_width(width)]
};

// Of the rows from `first` on; row n of them is row first + n of the others.
struct GeluTangents {
  int64_t first;
  ConstRows x;
  Rows out;
};

// A thread's rows, [padded_width(width)] each.
struct GeluBuffers {
  float *x, *grad, *out, *out_tangent;
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL_UP_TO_BF16
#define SBRRT_KERNEL "cpu/gelu_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

// Rows per block of the column sums: fixed, so the sums do not depend on the number of threads.
constexpr int64_t kBlockRows = 32;  // 50k elements, near 10 us: well above the cost of a fork

void forward_rows(const GeluInputs& in, const Rows& out, const GeluTangents& tangents,
                  const GeluBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_UP_TO_BF16(gelu_forward, in, out, tangents, buffers, begin, end)
}

void grad_rows(const GeluInputs& in, const ConstRows& grad, const Rows& out, float* sums,
               const GeluBuffers& buffers, int64_t begin, int64_t end) {
  SBRRT_RETURN_UP_TO_BF16(gelu_grad, in, grad, out, sums, buffers, begin, end)
}

// Calls run(block, buffers, begin, end) for every block of rows, on all threads; the last rows have a
// tangent.
template <typename F>
void for_each_block(int64_t num_rows, int64_t width, F run, int64_t num_tangents = 0) {
  const int64_t padded = padded_width(width);
  share_blocks(num_rows, kBlockRows, num_rows - num_tangents, [&](int64_t begin, int64_t end) {
    const AlignedArray<float> floats(4 * padded);
    float* f = floats.get();
    const GeluBuffers buffers{f, f + padded, f + 2 * padded, f + 3 * padded};
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

// Backward and JVP: out = grad * gelu'(x + bias), where grad is a gradient or a tangent. `sums`, if
// given, becomes the column sums.
void run_grad(TensorRef grad, TensorRef x, TensorRef bias, TensorRef out, MaybeTensorRef sums) {
  const DenseInputs in(x, bias);
  const at::Tensor dense = with_dense_rows(grad);
  const int64_t padded = padded_width(x.size(1));
  const int64_t num_blocks = sums ? num_blocks_of(x.size(0), kBlockRows) : 0;
  const AlignedArray<float> block_sums(num_blocks * padded);
  for_each_block(x.size(0), x.size(1),
                 [&](int64_t block, const GeluBuffers& buffers, int64_t begin, int64_t end) {
                   float* s = sums ? block_sums.get() + block * padded : nullptr;
                   grad_rows(in.view, const_rows(dense), rows(out), s, buffers, begin, end);
                 });
  if (sums) write_parameter_gradient(block_sums.get(), num_blocks, padded, *sums);
}

}  // namespace

void GeluForward::run_cpu() const {
  const DenseInputs in(x, bias);
  const int64_t num_tangents = x_tangent ? x_tangent->size(0) : 0;
  const at::Tensor tangent = x_tangent ? with_dense_rows(*x_tangent) : in.x;
  const GeluTangents tangents{x.size(0) - num_tangents, const_rows(tangent),
                              rows(x_tangent ? *out_tangent : out)};
  const auto run = [&](int64_t, const GeluBuffers& buffers, int64_t begin, int64_t end) {
    forward_rows(in.view, rows(out), tangents, buffers, begin, end);
  };
  for_each_block(x.size(0), x.size(1), run, num_tangents);
}

void GeluBackward::run_cpu() const { run_grad(grad, x, bias, dx, dbias); }

void GeluJvp::run_cpu() const { run_grad(x_tangent, x, bias, out, {}); }

}  // namespace sbrrt
