// One row of LayerNorm, forward and its adjoint, on padded rows of floats in L1. A row is computed
// in strips of kStrip Vecs with a sum for each, so that additions do not wait for each other.
// Derivations are in docs/math/layernorm.md. Included after vec.h, vec_rows.h, dropout_words.h.

namespace sbrrt::SBRRT_ISA {

constexpr int kStrip = 4;

inline int64_t whole_vecs(int64_t width) { return (width + kVecSize - 1) / kVecSize * kVecSize; }

// Calls pass.step<n>(j) for n Vecs from element j on, over a whole row.
template <typename Pass>
inline void run_pass(Pass& pass, int64_t begin, int64_t end) {
  int64_t j = begin;
  for (; j + kStrip * kVecSize <= end; j += kStrip * kVecSize) pass.template step<kStrip>(j);
  for (; j < end; j += kVecSize) pass.template step<1>(j);
}

// Dropout's factors of a row.
template <bool kDrops>
class RowFactors {
 public:
  RowFactors(const DropoutRows& dropout, const uint32_t* words)
      : threshold_(dropout.threshold), scale_(vec_set(dropout.scale)), words_(words) {}

  // M x + y at element j
  Vec drop_and_add(int64_t j, Vec x, Vec y) const {
    if constexpr (!kDrops) return x + y;
    return vec_fma(x, vec_keep(words_ + j, threshold_, scale_), y);
  }

  // M x at element j
  Vec drop(int64_t j, Vec x) const {
    if constexpr (!kDrops) return x;
    return vec_keep(words_ + j, threshold_, x * scale_);
  }

 private:
  uint32_t threshold_;
  Vec scale_;
  const uint32_t* words_;
};

static_assert(3 + kWordsPerGroup + kVecSize <= LayerNormBuffers::kWordPadding);

inline DropoutRun row_run(const DropoutRows& dropout, int64_t row, uint32_t* words) {
  return dropout.drops ? DropoutRun(dropout.offsets[row], dropout.stream, words) : DropoutRun();
}

// The same pass, with each word made shortly before it is used: meanwhile memory keeps up.
template <bool kDrops, typename Pass>
inline void run_pass_with_words(Pass& pass, DropoutRun& run, int64_t end) {
  if constexpr (!kDrops) return run_pass(pass, 0, end);
  for (int64_t j = 0; j < end; j += kWordsPerGroup) {
    const int64_t stop = std::min(j + kWordsPerGroup, end);
    run.make(stop);
    run_pass(pass, j, stop);
  }
}

struct StripTotal {
  VecTotal total[kStrip];

  StripTotal() {
    for (int u = 0; u < kStrip; ++u) total[u] = total_zero();
  }
  SBRRT_INLINE float sum() const {
    return total_sum((total[0] + total[1]) + (total[2] + total[3]));
  }
};

struct SquaresPass {
  const float* s;
  Vec mean;
  StripTotal squares;

  template <int kVecs>
  void step(int64_t j) {
    SBRRT_UNROLL
    for (int u = 0; u < kVecs; ++u) {
      const Vec centred = vec_load(s + j + u * kVecSize) - mean;
      squares.total[u] = total_fma(squares.total[u], centred, centred);
    }
  }
};

// 1 / deviation of a row s of this mean, which is zero from width on.
inline float row_rstd(const float* s, float mean, int64_t width, float eps) {
  SquaresPass pass{s, vec_set(mean), {}};
  const int64_t whole = width / kVecSize * kVecSize;
  run_pass(pass, 0, whole);
  if (whole < width) {
    const Vec centred = vec_head(vec_load(s + whole) - pass.mean, width - whole);
    pass.squares.total[0] = total_fma(pass.squares.total[0], centred, centred);
  }
  return 1.0f / std::sqrt(pass.squares.sum() / static_cast<float>(width) + eps);
}

// (s - mean) rstd
struct Standard {
  Vec mean, rstd;

  Standard(float mean_, float rstd_) : mean(vec_set(mean_)), rstd(vec_set(rstd_)) {}

  Vec operator()(Vec s) const { return (s - mean) * rstd; }
};

// The sums of g and of g standard; g is zero from width on.
struct ProjectionTotals {
  StripTotal g, product;

  void add(int u, Vec x, Vec standard) {
    g.total[u] = total_add(g.total[u], x);
    product.total[u] = total_fma(product.total[u], x, standard);
  }
};

struct ProjectionMeans {
  float g, product;

  ProjectionMeans() = default;
  SBRRT_INLINE ProjectionMeans(const ProjectionTotals& totals, int64_t width)
      : g(totals.g.sum() / static_cast<float>(width)),
        product(totals.product.sum() / static_cast<float>(width)) {}
};

// LayerNorm's derivative, its own adjoint: rstd (g - mean(g) - standard mean(g standard)). A product
// g is rounded, as in its mean: where rows are constant, rstd is huge and g - mean(g) is nothing.
struct Projection {
  Vec mean, mean_product, rstd;

  Projection(const ProjectionMeans& means, float rstd_)
      : mean(vec_set(means.g)), mean_product(vec_set(means.product)), rstd(vec_set(rstd_)) {}

  Vec operator()(Vec g, Vec standard) const { return rstd * (g - mean - standard * mean_product); }
};

inline void clear_sums(float* sums, int64_t width) {
  for (int64_t j = 0; j < width; j += kVecSize) vec_store(sums + j, vec_set(0.0f));
}

}  // namespace sbrrt::SBRRT_ISA
