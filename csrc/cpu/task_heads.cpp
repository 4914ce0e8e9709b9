// The heads of a group of tasks on the CPU. Examples are independent; so are rows of weights.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/dense_rows.h"
#include "common/task_heads_op.h"

#define SBRRT_KERNEL "cpu/task_heads_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainProducts = 1 << 16;

void dot_rows(const float* x, const float* rows, int64_t num_rows, int64_t width, float* out) {
  SBRRT_RETURN_ON_THIS_CPU(dot_rows, x, rows, num_rows, width, out)
}

void sum_rows(const float* coefficients, int64_t stride, const float* rows, int64_t num_rows,
              int64_t width, float* out) {
  SBRRT_RETURN_ON_THIS_CPU(sum_rows, coefficients, stride, rows, num_rows, width, out)
}

// Pooled vectors, or tangents of them, times dropout's factors.
class Vectors {
 public:
  Vectors(const at::Tensor& pooled, const std::optional<at::Tensor>& factors)
      : pooled_(with_dense_rows(pooled)) {
    if (factors) factors_ = with_dense_rows(*factors);
  }

  int64_t width() const { return pooled_.size(1); }
  void read(int64_t row, float* to) const {
    std::copy_n(pooled_.const_data_ptr<float>() + row * pooled_.stride(0), width(), to);
    scale(row, to);
  }
  // Multiplies a vector by the factors.
  void scale(int64_t row, float* to) const {
    if (!factors_.defined()) return;
    const float* factor = factors_.const_data_ptr<float>() + row * factors_.stride(0);
    for (int64_t j = 0; j < width(); ++j) to[j] *= factor[j];
  }

 private:
  at::Tensor pooled_, factors_;
};

int64_t first_row(const Head& head, int64_t example) {
  return head.first_sequence + example * head.sequences_per_example();
}

// x, or u and v, of an example, side by side.
void read_vectors(const Vectors& x, const Head& head, int64_t example, float* to) {
  for (int i = 0; i < head.sequences_per_example(); ++i) {
    x.read(first_row(head, example) + i, to + i * x.width());
  }
}

// The features behind them: |u - v|.
void add_difference(const Head& head, int64_t width, float* x) {
  if (head.kind != HeadKind::kConcatDifference) return;
  for (int64_t j = 0; j < width; ++j) x[2 * width + j] = std::fabs(x[j] - x[width + j]);
}

// The tangent of |u - v| behind those of u and v.
void add_difference_tangent(const Head& head, int64_t width, const float* x, float* t) {
  if (head.kind != HeadKind::kConcatDifference) return;
  for (int64_t j = 0; j < width; ++j) {
    t[2 * width + j] = sign_of(x[j] - x[width + j]) * (t[j] - t[width + j]);
  }
}

double product(const float* a, const float* b, int64_t width) {
  double sum = 0;
  for (int64_t j = 0; j < width; ++j) sum += static_cast<double>(a[j]) * b[j];
  return sum;
}

Cosine cosine_of(const Head& head, const float* u, int64_t width) {
  const float* v = u + width;
  return {head.scale, product(u, v, width), product(u, u, width), product(v, v, width)};
}

float cosine_tangent(const Cosine& cosine, const float* u, const float* du, int64_t width) {
  const float *v = u + width, *dv = du + width;
  const double across = product(v, du, width) + product(u, dv, width);
  return static_cast<float>(cosine.across * across - cosine.along_u * product(u, du, width) -
                            cosine.along_v * product(v, dv, width));
}

// f(head, example, x, others) of every example, with room for its features at x and at others.
template <typename F>
void each_example(const std::vector<Head>& heads, int64_t width, const F& f) {
  int64_t num_examples = 0, num_products = 1;
  for (const Head& head : heads) {
    num_examples += head.num_examples;
    num_products = std::max<int64_t>(num_products, head.num_outputs * 3 * width);
  }
  const int64_t grain = std::max<int64_t>(1, kGrainProducts / num_products);
  at::parallel_for(0, num_examples, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> features(6 * width);
    int64_t first = 0;
    for (const Head& head : heads) {
      const int64_t last = std::min(end, first + head.num_examples);
      for (int64_t i = std::max(begin, first); i < last; ++i) {
        f(head, i - first, features.data(), features.data() + 3 * width);
      }
      first += head.num_examples;
    }
  });
}

// Each is one of the three ops on one pass.
template <typename Op>
std::vector<Head> heads_of(const Op& op) {
  return read_heads(Op::kOp, op.heads, op.scales);
}

// out = b + W x
void apply_head(const Head& head, const float* weights, const float* x, int64_t num_features,
                bool with_bias, float* out) {
  dot_rows(x, weights + head.weight_offset, head.num_outputs, num_features, out);
  if (!with_bias) return;
  for (int64_t c = 0; c < head.num_outputs; ++c) out[c] += weights[head.bias_offset + c];
}

// The gradient of a linear head's vectors, at x, from that of its features behind them.
void fold_gradient(const Head& head, int64_t width, const float* x, float* grad) {
  if (head.kind != HeadKind::kConcatDifference) return;
  for (int64_t j = 0; j < width; ++j) {
    const float by_difference = sign_of(x[j] - x[width + j]) * grad[2 * width + j];
    grad[j] += by_difference;
    grad[width + j] -= by_difference;
  }
}

void cosine_gradient(const Head& head, int64_t width, const float* u, float cotangent,
                     float* grad) {
  const Cosine cosine = cosine_of(head, u, width);
  const float* v = u + width;
  for (int64_t j = 0; j < width; ++j) {
    const double du = cosine.across * v[j] - cosine.along_u * u[j];
    const double dv = cosine.across * u[j] - cosine.along_v * v[j];
    grad[j] = static_cast<float>(cotangent * du);
    grad[width + j] = static_cast<float>(cotangent * dv);
  }
}

// All examples' features of one head in a pass, [num_examples, num_features] at `to`.
void read_features(const Vectors& x, const Head& head, float* to) {
  const int64_t num_features = head.num_vectors() * x.width();
  for (int64_t i = 0; i < head.num_examples; ++i) {
    read_vectors(x, head, i, to + i * num_features);
    add_difference(head, x.width(), to + i * num_features);
  }
}

}  // namespace

void HeadsForward::run_cpu() const {
  const std::vector<Head> all = heads_of(*this);
  const Vectors vectors(pooled, factors);
  const at::Tensor dense = weights.contiguous();
  const float* w = dense.const_data_ptr<float>();
  float* results = out.mutable_data_ptr<float>();
  const int64_t width = vectors.width();
  each_example(all, width, [&](const Head& head, int64_t example, float* x, float*) {
    float* result = results + head.first_output + example * head.num_outputs;
    read_vectors(vectors, head, example, x);
    add_difference(head, width, x);
    if (head.is_cosine()) {
      *result = static_cast<float>(cosine_of(head, x, width).value);
    } else {
      apply_head(head, w, x, head.num_vectors() * width, true, result);
    }
  });
}

void HeadsJvp::run_cpu() const {
  const std::vector<Head> all = heads_of(*this);
  const Vectors vectors(pooled, factors), tangents(pooled_tangent, factors);
  const at::Tensor dense = weights.contiguous();
  const float* w = dense.const_data_ptr<float>();
  float* results = out.mutable_data_ptr<float>();
  const int64_t width = vectors.width();
  each_example(all, width, [&](const Head& head, int64_t example, float* x, float* t) {
    float* result = results + head.first_output + example * head.num_outputs;
    read_vectors(vectors, head, example, x);
    read_vectors(tangents, head, example, t);
    add_difference_tangent(head, width, x, t);
    if (head.is_cosine()) {
      *result = cosine_tangent(cosine_of(head, x, width), x, t, width);
    } else {
      apply_head(head, w, t, head.num_vectors() * width, false, result);
    }
  });
}

void HeadsVjp::run_cpu() const {
  const std::vector<Head> all = heads_of(*this);
  const Vectors vectors(pooled, factors);
  const at::Tensor dense = weights.contiguous(), flat = cotangents.contiguous();
  const float *w = dense.const_data_ptr<float>(), *c = flat.const_data_ptr<float>();
  float* results = dpooled.mutable_data_ptr<float>();
  const int64_t width = vectors.width();
  std::fill_n(results, dpooled.numel(), 0.0f);
  each_example(all, width, [&](const Head& head, int64_t example, float* x, float* grad) {
    const float* cotangent = c + head.first_output + example * head.num_outputs;
    read_vectors(vectors, head, example, x);
    if (head.is_cosine()) {
      cosine_gradient(head, width, x, *cotangent, grad);
    } else {
      sum_rows(cotangent, 1, w + head.weight_offset, head.num_outputs, head.num_vectors() * width,
               grad);
      fold_gradient(head, width, x, grad);
    }
    for (int i = 0; i < head.sequences_per_example(); ++i) {
      const int64_t row = first_row(head, example) + i;
      vectors.scale(row, grad + i * width);
      std::copy_n(grad + i * width, width, results + row * width);
    }
  });
}

void HeadsWeightGradients::run_cpu() const {
  std::vector<Vectors> passes{{pooled, factors}};
  std::vector<at::Tensor> flat{cotangents.contiguous()};
  if (other_pooled) {
    passes.emplace_back(*other_pooled, other_factors);
    flat.push_back(other_cotangents->contiguous());
  }
  float* results = dweights.mutable_data_ptr<float>();
  std::vector<float> features, coefficients;
  for (const Head& head : read_heads(kOp, heads, {})) {
    if (head.is_cosine()) continue;
    const int64_t num_features = head.num_vectors() * pooled.size(1);
    const int64_t num_outputs = head.num_outputs;
    const int64_t num_rows = head.num_examples * static_cast<int64_t>(passes.size());
    features.resize(num_rows * num_features);
    coefficients.clear();
    for (size_t i = 0; i < passes.size(); ++i) {
      read_features(passes[i], head, features.data() + i * head.num_examples * num_features);
      const float* c = flat[i].const_data_ptr<float>() + head.first_output;
      coefficients.insert(coefficients.end(), c, c + head.size());
    }
    const int64_t grain = std::max<int64_t>(1, kGrainProducts / (num_rows * num_features));
    at::parallel_for(0, num_outputs, grain, [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) {
        const float* c = coefficients.data() + output;
        sum_rows(c, num_outputs, features.data(), num_rows, num_features,
                 results + head.weight_offset + output * num_features);
        float sum = 0.0f;
        for (int64_t i = 0; i < num_rows; ++i) sum += c[i * num_outputs];
        results[head.bias_offset + output] = sum;
      }
    });
  }
}

}  // namespace sbrrt
