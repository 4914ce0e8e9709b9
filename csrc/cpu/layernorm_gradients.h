// The backward of LN(residual + dropout(x + bias)), rows begin ... end - 1. Included by
// layernorm_kernel.h.

namespace sbrrt::SBRRT_ISA {

// The next row in memory, which a pass that makes random words fetches meanwhile.
struct NextRow {
  const char *x, *residual, *grad;
  int64_t x_size, residual_size, grad_size;  // bytes of an element

  NextRow(const ConstRows& x_rows, const ConstRows& residual_rows, const ConstRows& grad_rows,
          int64_t row)
      : x(start(x_rows, row)),
        residual(start(residual_rows, row)),
        grad(start(grad_rows, row)),
        x_size(size(x_rows)),
        residual_size(size(residual_rows)),
        grad_size(size(grad_rows)) {}

  void prefetch(int64_t j) const {
    vec_prefetch(x + j * x_size);
    vec_prefetch(residual + j * residual_size);
    vec_prefetch(grad + j * grad_size);
  }

 private:
  static int64_t size(const ConstRows& rows) { return rows.is_bfloat16 ? 2 : 4; }
  static const char* start(const ConstRows& rows, int64_t row) {
    return static_cast<const char*>(rows.data) + (row + 1) * rows.stride * size(rows);
  }
};

// Recomputes the standard row, and sums for its projection. Meanwhile it fetches the memory that
// the gradients are written to.
template <bool kDrops, typename X>
struct StandardPass {
  const ResidualRow<kDrops, X>& row;
  const float *dy, *weight;
  const Standard& standardize;
  float* standard;
  const X* dx;
  const float* dresidual;
  const NextRow& next;
  ProjectionTotals& totals;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const int64_t i = j + u * kVecSize;
      vec_prefetch(dx + i);
      vec_prefetch(dresidual + i);
      if constexpr (kDrops) next.prefetch(i);
      const Vec d = vec_load(dy + i), z = standardize(row.sum(i));
      totals.add(u, vec_rounded(d * vec_load(weight + i)), z);
      vec_store(standard + i, z);
    }
  }
};

// A row between the passes; dx may be the memory of standard, and dresidual that of dy.
template <typename X>
struct GradientRow {
  const float *dy, *standard;
  X* dx;
  float* dresidual;
  const uint32_t* words;
  ProjectionMeans means;
  float rstd;
};

// Sums of a Vec of columns while rows are added to them.
template <bool kSums>
struct ColumnTotals {
  Vec weight, shift, bias;

  ColumnTotals(const LayerNormSums& sums, int64_t j) {
    if constexpr (!kSums) return;
    weight = vec_load(sums.weight + j);
    shift = vec_load(sums.shift + j);
    bias = vec_load(sums.bias + j);
  }

  void add(Vec dy, Vec standard, Vec dx) {
    if constexpr (!kSums) return;
    weight = vec_fma(dy, standard, weight);
    shift = shift + dy;
    bias = bias + dx;
  }

  void store(const LayerNormSums& sums, int64_t j) const {
    if constexpr (!kSums) return;
    vec_store(sums.weight + j, weight);
    vec_store(sums.shift + j, shift);
    vec_store(sums.bias + j, bias);
  }
};

// dresidual = project(dy weight) and dx = M dresidual of some rows: one pass over the block's sums
// for all of them.
template <bool kDrops, bool kSums, typename X, size_t... kIndex>
inline void write_gradients(const GradientRow<X>* rows, const DropoutRows& dropout,
                            const float* weight, LayerNormSums sums, int64_t stop,
                            std::index_sequence<kIndex...>) {
  const float *const dys[] = {rows[kIndex].dy...}, *const standards[] = {rows[kIndex].standard...};
  X* const dxs[] = {rows[kIndex].dx...};
  float* const dresiduals[] = {rows[kIndex].dresidual...};
  const Projection project[] = {Projection(rows[kIndex].means, rows[kIndex].rstd)...};
  const RowFactors<kDrops> factors[] = {RowFactors<kDrops>(dropout, rows[kIndex].words)...};
  for (int64_t j = 0; j < stop; j += kVecSize) {
    const Vec w = vec_load(weight + j);
    ColumnTotals<kSums> totals(sums, j);
    SBRRT_UNROLL
    for (size_t r = 0; r < sizeof...(kIndex); ++r) {
      const Vec dy = vec_load(dys[r] + j), standard = vec_load(standards[r] + j);
      const Vec dresidual = project[r](vec_rounded(dy * w), standard);
      const Vec dx = factors[r].drop(j, dresidual);
      vec_store(dresiduals[r] + j, dresidual);
      vec_store(dxs[r] + j, dx);
      totals.add(dy, standard, dx);
    }
    totals.store(sums, j);
  }
}

// grad + product of a row, in the buffer where it is not grad's own memory.
SBRRT_INLINE const float* read_output_grad(const OutputGrad& dy, int64_t row, int64_t width,
                                           float* buffer, LayerNormBuffers& buffers) {
  const float* grad = read_row(dy.grad, row, width, buffer);
  if (!dy.product.data) return grad;
  const auto add = [&](const auto* product) {
    for (int64_t j = 0; j < width; j += kVecSize) {
      vec_store(buffer + j, vec_load(grad + j) + vec_load(product + j));
    }
  };
  if (is_whole_bfloat16(dy.product, width)) {
    add(open_row<at::BFloat16>(dy.product, row, width, nullptr));
  } else {
    add(read_row(dy.product, row, width, buffers.row(2)));
  }
  return buffer;
}

// The first pass of row number `index` of a group. Fields are set one by one: copying a record that
// was just written waits for the stores.
template <bool kDrops, typename X>
inline void standard_row(const OutputGrad& dy_rows, const ForwardInputs& in,
                         const ResidualGradients& out, LayerNormBuffers& buffers, int64_t row,
                         int64_t index, GradientRow<X>& result) {
  const ResidualInputs& inputs = in.residual;
  const int64_t width = inputs.width;
  const float rstd = in.statistics.rstd[row];
  float *standard = buffers.row(3 + 2 * index), *buffer = buffers.row(4 + 2 * index);
  DropoutRun run = row_run(inputs.dropout, row, buffers.words(index));
  const ResidualRow<kDrops, X> residual(inputs, row, run.words(), buffers);
  const float* dy = read_output_grad(dy_rows, row, width, buffer, buffers);
  X* dx = open_row<X>(out.dx, row, width, standard);
  float* dresidual = begin_row(out.dresidual, row, width, buffer);
  const Standard standardize(in.statistics.mean[row], rstd);
  ProjectionTotals totals;
  const NextRow next(inputs.x, inputs.residual, dy_rows.grad, row);
  StandardPass<kDrops, X> pass{residual, dy,        in.weight, standardize, standard,
                               dx,       dresidual, next,      totals};
  run_pass_with_words<kDrops>(pass, run, whole_vecs(width));
  result.dy = dy;
  result.standard = standard;
  result.dx = dx;
  result.dresidual = dresidual;
  result.words = run.words();
  result.means = ProjectionMeans(totals, width);
  result.rstd = rstd;
}

template <int kRows, bool kDrops, bool kSums, typename X>
inline void backward_group(const OutputGrad& dy, const ForwardInputs& in,
                           const ResidualGradients& out, const LayerNormSums& sums,
                           LayerNormBuffers& buffers, int64_t first) {
  const int64_t width = in.residual.width;
  GradientRow<X> rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    standard_row<kDrops, X>(dy, in, out, buffers, first + r, r, rows[r]);
  }
  write_gradients<kDrops, kSums>(rows, in.residual.dropout, in.weight, sums, whole_vecs(width),
                                 std::make_index_sequence<kRows>());
  for (int r = 0; r < kRows; ++r) {
    close_row(out.dx, first + r, width, rows[r].dx);
    finish_row(out.dresidual, first + r, width, rows[r].dresidual);
  }
}

template <bool kDrops, bool kSums, typename X>
inline void backward_rows_of(const OutputGrad& dy, const ForwardInputs& in,
                             const ResidualGradients& out, const LayerNormSums& sums,
                             LayerNormBuffers& buffers, int64_t begin, int64_t end) {
  constexpr int kRows = kSums ? kRowsPerGroup : 1;
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    backward_group<kRows, kDrops, kSums, X>(dy, in, out, sums, buffers, row);
  }
  for (; row < end; ++row) backward_group<1, kDrops, kSums, X>(dy, in, out, sums, buffers, row);
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
