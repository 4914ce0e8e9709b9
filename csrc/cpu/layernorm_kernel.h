// LN(residual + dropout(x + bias)): forward, backward and tangent of rows begin ... end - 1.
// Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/vec_rows.h"
#include "cpu/dropout_words.h"
#include "cpu/layernorm_rows.h"

namespace sbrrt::SBRRT_ISA {

// A row s = residual + M (x + bias), zero from width on. X is float or, for whole rows, bfloat16.
template <bool kDrops, typename X>
struct ResidualRow {
  const X* x;
  const float *residual, *bias;
  RowFactors<kDrops> factors;

  // Takes the buffers 0 and 1.
  ResidualRow(const ResidualInputs& in, int64_t row, const uint32_t* words,
              LayerNormBuffers& buffers)
      : x(open_row<X>(in.x, row, in.width, buffers.row(0))),
        residual(read_row(in.residual, row, in.width, buffers.row(1))),
        bias(in.bias),
        factors(in.dropout, words) {}

  Vec sum(int64_t j) const {
    return factors.drop_and_add(j, vec_load(x + j) + vec_load(bias + j), vec_load(residual + j));
  }
};

template <bool kDrops, typename X>
struct SumPass {
  ResidualRow<kDrops, X> row;
  float* s;
  StripTotal sum;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const Vec value = row.sum(j + u * kVecSize);
      sum.total[u] = total_add(sum.total[u], value);
      vec_store(s + j + u * kVecSize, value);
    }
  }
};

struct ScalePass {
  const float *s, *weight, *shift;
  Standard standard;
  float* y;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      vec_store(y + i, vec_fma(standard(vec_load(s + i)), vec_load(weight + i),
                               vec_load(shift + i)));
    }
  }
};

template <bool kDrops, typename X>
inline void forward_group(const ResidualInputs& in, const LayerNormParameters& parameters,
                          const ResidualOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                          int64_t end) {
  const int64_t stop = whole_vecs(in.width);
  for (int64_t row = begin; row < end; ++row) {
    DropoutRun run = row_run(in.dropout, row, buffers.words());
    SumPass<kDrops, X> pass{{in, row, run.words(), buffers}, buffers.row(2 + row - begin), {}};
    run_pass_with_words<kDrops>(pass, run, stop);
    out.mean[row] = pass.sum.sum() / static_cast<float>(in.width);
  }
  for (int64_t row = begin; row < end; ++row) {
    const float* s = buffers.row(2 + row - begin);
    out.rstd[row] = row_rstd(s, out.mean[row], in.width, parameters.eps);
  }
  for (int64_t row = begin; row < end; ++row) {
    float* y = begin_row(out.y, row, in.width, buffers.row(2 + kRowsPerGroup));
    ScalePass pass{buffers.row(2 + row - begin), parameters.weight, parameters.shift,
                   Standard(out.mean[row], out.rstd[row]), y};
    run_pass(pass, 0, stop);
    finish_row(out.y, row, in.width, y);
    if (out.low.data) finish_row(out.low, row, in.width, y);
  }
}

template <bool kDrops, typename X>
inline void forward_groups(const ResidualInputs& in, const LayerNormParameters& parameters,
                           const ResidualOutputs& out, LayerNormBuffers& buffers, int64_t begin,
                           int64_t end) {
  for (int64_t row = begin; row < end; row += kRowsPerGroup) {
    forward_group<kDrops, X>(in, parameters, out, buffers, row,
                             std::min<int64_t>(row + kRowsPerGroup, end));
  }
}

inline void layernorm_forward(const ResidualInputs& in, const LayerNormParameters& parameters,
                              const ResidualOutputs& out, LayerNormBuffers& buffers,
                              int64_t begin, int64_t end) {
  const bool is_direct = is_whole_bfloat16(in.x, in.width);
  const auto run = is_direct ? in.dropout.drops ? forward_groups<true, at::BFloat16>
                                                : forward_groups<false, at::BFloat16>
                             : in.dropout.drops ? forward_groups<true, float>
                                                : forward_groups<false, float>;
  run(in, parameters, out, buffers, begin, end);
}

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

// The standard row, and t = tresidual + M tx, the tangent of s.
template <bool kDrops>
struct TangentPass {
  ResidualRow<kDrops, float> row;
  const float *tx, *tresidual;
  Standard standardize;
  float *standard, *t;
  ProjectionTotals totals;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      const Vec z = standardize(row.sum(i));
      const Vec value = row.factors.drop_and_add(i, vec_load(tx + i), vec_load(tresidual + i));
      totals.add(u, value, z);
      vec_store(standard + i, z);
      vec_store(t + i, value);
    }
  }
};

// The tangent of y: weight project(t).
struct OutputTangentPass {
  const float *t, *standard, *weight;
  Projection project;
  float* ty;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      vec_store(ty + i, project(vec_load(t + i), vec_load(standard + i)) * vec_load(weight + i));
    }
  }
};

template <bool kDrops>
inline void jvp_rows_of(const ConstRows& tx, const ConstRows& tresidual, const ForwardInputs& in,
                        const Rows& out, const Rows& low, LayerNormBuffers& buffers,
                        int64_t begin, int64_t end) {
  const ResidualInputs& inputs = in.residual;
  const int64_t width = inputs.width, stop = whole_vecs(width);
  float *standard = buffers.row(2), *t = buffers.row(2 + kRowsPerGroup);
  for (int64_t row = begin; row < end; ++row) {
    const float mean = in.statistics.mean[row], rstd = in.statistics.rstd[row];
    DropoutRun run = row_run(inputs.dropout, row, buffers.words());
    TangentPass<kDrops> pass{{inputs, row, run.words(), buffers},
                             read_row(tx, row, width, buffers.row(4)),
                             read_row(tresidual, row, width, buffers.row(5)),
                             Standard(mean, rstd),
                             standard,
                             t,
                             {}};
    run_pass_with_words<kDrops>(pass, run, stop);
    float* ty = begin_row(out, row, width, buffers.row(0));
    OutputTangentPass tangent{t, standard, in.weight,
                              Projection(ProjectionMeans(pass.totals, width), rstd), ty};
    run_pass(tangent, 0, stop);
    finish_row(out, row, width, ty);
    if (low.data) finish_row(low, row, width, ty);
  }
}

inline void layernorm_jvp(const ConstRows& tx, const ConstRows& tresidual,
                          const ForwardInputs& in, const Rows& out, const Rows& low,
                          LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  const auto run = in.residual.dropout.drops ? jvp_rows_of<true> : jvp_rows_of<false>;
  run(tx, tresidual, in, out, low, buffers, begin, end);
}

}  // namespace sbrrt::SBRRT_ISA
