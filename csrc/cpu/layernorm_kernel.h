// LN(residual + dropout(x + bias)): forward and tangent of rows begin ... end - 1; the backward is in
// layernorm_gradients.h.
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

// ScalePass for a row with a tangent: also the standard row, in the memory of s, and
// t = tresidual + M tx, the tangent of s.
template <bool kDrops, typename X>
struct ScaleTangentPass {
  float* s;
  const float *weight, *shift;
  Standard standardize;
  float* y;
  const X* tx;
  const float* tresidual;
  RowFactors<kDrops> factors;
  float* t;
  ProjectionTotals totals;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      const Vec z = standardize(vec_load(s + i));
      const Vec value = factors.drop_and_add(i, vec_load(tx + i), vec_load(tresidual + i));
      totals.add(u, value, z);
      vec_store(y + i, vec_fma(z, vec_load(weight + i), vec_load(shift + i)));
      vec_store(s + i, z);
      vec_store(t + i, value);
    }
  }
};

inline void finish_copies(const Rows& rows, const Rows& low, int64_t row, int64_t width,
                          const float* y) {
  finish_row(rows, row, width, y);
  if (low.data) finish_row(low, row, width, y);
}

inline void scale_row(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t row, float* s) {
  const int64_t width = rows.in.width;
  const ResidualOutputs& out = rows.out;
  float* y = begin_row(out.y, row, width, buffers.row(2 + kRowsPerGroup));
  ScalePass pass{s, rows.parameters.weight, rows.parameters.shift,
                 Standard(out.mean[row], out.rstd[row]), y};
  run_pass(pass, 0, whole_vecs(width));
  finish_copies(out.y, out.low, row, width, y);
}

// The same and the row's tangent, whose passes go through the row as those of layernorm_jvp do: their
// sums have the same bits. The row's words are there.
template <bool kDrops, typename X>
inline void scale_row_and_tangent(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t row,
                                  DropoutRun& run, float* s) {
  const int64_t width = rows.in.width, stop = whole_vecs(width);
  const ResidualOutputs& out = rows.out;
  const ResidualTangents& tangents = rows.tangents;
  const int64_t tangent_row = row - tangents.first;
  const float rstd = out.rstd[row];
  float* y = begin_row(out.y, row, width, buffers.row(2 + kRowsPerGroup));
  float* ty = begin_row(tangents.y, tangent_row, width, buffers.row(5));  // first it holds t
  ScaleTangentPass<kDrops, X> pass{
      s, rows.parameters.weight, rows.parameters.shift, Standard(out.mean[row], rstd), y,
      open_row<X>(tangents.x, tangent_row, width, buffers.row(0)),
      read_row(tangents.residual, tangent_row, width, buffers.row(1)),
      RowFactors<kDrops>(rows.in.dropout, run.words()), ty, {}};
  run_pass_with_words<kDrops>(pass, run, stop);
  finish_copies(out.y, out.low, row, width, y);
  OutputTangentPass tangent{ty, s, rows.parameters.weight,
                            Projection(ProjectionMeans(pass.totals, width), rstd), ty};
  run_pass(tangent, 0, stop);
  finish_copies(tangents.y, tangents.low, tangent_row, width, ty);
}

template <bool kDrops, typename X>
inline void forward_group(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t begin,
                          int64_t end) {
  const ResidualInputs& in = rows.in;
  const ResidualOutputs& out = rows.out;
  DropoutRun runs[kRowsPerGroup];
  for (int64_t row = begin; row < end; ++row) {
    DropoutRun& run = runs[row - begin];
    run = row_run(in.dropout, row, buffers.words(row - begin));
    SumPass<kDrops, X> pass{{in, row, run.words(), buffers}, buffers.row(2 + row - begin), {}};
    run_pass_with_words<kDrops>(pass, run, whole_vecs(in.width));
    out.mean[row] = pass.sum.sum() / static_cast<float>(in.width);
  }
  for (int64_t row = begin; row < end; ++row) {
    const float* s = buffers.row(2 + row - begin);
    out.rstd[row] = row_rstd(s, out.mean[row], in.width, rows.parameters.eps);
  }
  const bool is_direct = is_whole_bfloat16(rows.tangents.x, in.width);
  const auto with_tangent = is_direct ? scale_row_and_tangent<kDrops, at::BFloat16>
                                      : scale_row_and_tangent<kDrops, float>;
  for (int64_t row = begin; row < end; ++row) {
    float* s = buffers.row(2 + row - begin);
    if (row < rows.tangents.first) {
      scale_row(rows, buffers, row, s);
    } else {
      with_tangent(rows, buffers, row, runs[row - begin], s);
    }
  }
}

template <bool kDrops, typename X>
inline void forward_groups(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t begin,
                           int64_t end) {
  for (int64_t row = begin; row < end; row += kRowsPerGroup) {
    forward_group<kDrops, X>(rows, buffers, row, std::min<int64_t>(row + kRowsPerGroup, end));
  }
}

inline void layernorm_forward(const ForwardRows& rows, LayerNormBuffers& buffers, int64_t begin,
                              int64_t end) {
  const ResidualInputs& in = rows.in;
  const bool is_direct = is_whole_bfloat16(in.x, in.width);
  const auto run = is_direct ? in.dropout.drops ? forward_groups<true, at::BFloat16>
                                                : forward_groups<false, at::BFloat16>
                             : in.dropout.drops ? forward_groups<true, float>
                                                : forward_groups<false, float>;
  run(rows, buffers, begin, end);
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

#include "cpu/layernorm_gradients.h"
