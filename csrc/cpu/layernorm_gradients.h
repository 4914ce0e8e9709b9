// The backward of LN(residual + dropout(x + bias)), rows begin ... end - 1. Included by
// layernorm_kernel.h.

namespace sbrrt::SBRRT_ISA {

// Recomputes the standard row, and sums for its projection and over the block's rows. Meanwhile it
// fetches the memory that the gradients are written to.
template <bool kDrops, bool kSums, typename X>
struct StandardPass {
  ResidualRow<kDrops, X> row;
  const float *dy, *weight;
  Standard standardize;
  float *standard, *dweight, *dshift;
  const X* dx;
  const float* dresidual;
  ProjectionTotals totals;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      vec_prefetch(dx + i);
      vec_prefetch(dresidual + i);
      const Vec d = vec_load(dy + i), z = standardize(row.sum(i));
      totals.add(u, vec_rounded(d * vec_load(weight + i)), z);
      vec_store(standard + i, z);
      if constexpr (kSums) {
        vec_store(dweight + i, vec_fma(d, z, vec_load(dweight + i)));
        vec_store(dshift + i, vec_load(dshift + i) + d);
      }
    }
  }
};

// dresidual = project(dy weight), dx = M dresidual, and the sum of dx over the block's rows.
template <bool kDrops, bool kSums, typename X>
struct GradientPass {
  const float *dy, *weight, *standard;
  Projection project;
  RowFactors<kDrops> factors;
  X* dx;
  float *dresidual, *dbias;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      const Vec g = vec_rounded(vec_load(dy + i) * vec_load(weight + i));
      const Vec d = project(g, vec_load(standard + i));
      const Vec kept = factors.drop(i, d);
      vec_store(dresidual + i, d);
      vec_store(dx + i, kept);
      if constexpr (kSums) vec_store(dbias + i, vec_load(dbias + i) + kept);
    }
  }
};

// grad + product of a row, from the buffers 3 and 6.
inline const float* read_output_grad(const OutputGrad& dy, int64_t row, int64_t width,
                                     LayerNormBuffers& buffers) {
  const float* grad = read_row(dy.grad, row, width, buffers.row(3));
  if (!dy.product.data) return grad;
  const float* product = read_row(dy.product, row, width, buffers.row(6));
  float* sum = buffers.row(3);
  for (int64_t j = 0; j < width; j += kVecSize) {
    vec_store(sum + j, vec_load(grad + j) + vec_load(product + j));
  }
  return sum;
}

template <bool kDrops, bool kSums, typename X>
inline void backward_rows_of(const OutputGrad& dy_rows, const ForwardInputs& in,
                             const ResidualGradients& out, const LayerNormSums& sums,
                             LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  const ResidualInputs& inputs = in.residual;
  const int64_t width = inputs.width, stop = whole_vecs(width);
  float* standard = buffers.row(2);
  for (int64_t row = begin; row < end; ++row) {
    const float mean = in.statistics.mean[row], rstd = in.statistics.rstd[row];
    DropoutRun run = row_run(inputs.dropout, row, buffers.words());
    const ResidualRow<kDrops, X> residual(inputs, row, run.words(), buffers);
    const float* dy = read_output_grad(dy_rows, row, width, buffers);
    X* dx = open_row<X>(out.dx, row, width, buffers.row(4));
    float* dresidual = begin_row(out.dresidual, row, width, buffers.row(5));
    StandardPass<kDrops, kSums, X> pass{
        residual, dy, in.weight, Standard(mean, rstd), standard, sums.weight, sums.shift,
        dx,       dresidual, {}};
    run_pass_with_words<kDrops>(pass, run, stop);
    const ProjectionMeans means(pass.totals, width);
    GradientPass<kDrops, kSums, X> gradient{
        dy, in.weight, standard, Projection(means, rstd), residual.factors, dx, dresidual,
        sums.bias};
    run_pass(gradient, 0, stop);
    close_row(out.dx, row, width, dx);
    finish_row(out.dresidual, row, width, dresidual);
  }
}

template <bool kDrops, typename X>
inline void backward_block(const OutputGrad& dy, const ForwardInputs& in,
                           const ResidualGradients& out, const LayerNormSums& sums,
                           LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  if (sums.weight == nullptr) {
    return backward_rows_of<kDrops, false, X>(dy, in, out, sums, buffers, begin, end);
  }
  for (float* sum : {sums.weight, sums.shift, sums.bias}) clear_sums(sum, in.residual.width);
  backward_rows_of<kDrops, true, X>(dy, in, out, sums, buffers, begin, end);
}

// The sums are null where they are not wanted, else written for this block of rows.
inline void layernorm_backward(const OutputGrad& dy, const ForwardInputs& in,
                               const ResidualGradients& out, const LayerNormSums& sums,
                               LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  const ResidualInputs& residual = in.residual;
  const bool is_direct = is_whole_bfloat16(residual.x, residual.width);
  const auto run = is_direct ? residual.dropout.drops ? backward_block<true, at::BFloat16>
                                                      : backward_block<false, at::BFloat16>
                             : residual.dropout.drops ? backward_block<true, float>
                                                      : backward_block<false, float>;
  run(dy, in, out, sums, buffers, begin, end);
}

}  // namespace sbrrt::SBRRT_ISA
