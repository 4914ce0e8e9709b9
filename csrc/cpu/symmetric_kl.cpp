// symmetric_kl on the CPU. A batch has some dozens of logits, so each row is done in double by the
// standard library: the inputs' rounding is then the only error, in both branches of the delta form.
// docs/math/symmetric_kl.md derives the gradients.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/symmetric_kl_op.h"
#include "cpu/rows.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainClasses = 512;
constexpr double kSmall = 1.0;  // deltas up to this go through expm1 and log1p

// q = softmax(logits); returns the logits' logsumexp.
double softmax(const float* logits, int64_t num_classes, double* q) {
  const double largest = *std::max_element(logits, logits + num_classes);
  double sum = 0;
  for (int64_t j = 0; j < num_classes; ++j) sum += q[j] = std::exp(logits[j] - largest);
  for (int64_t j = 0; j < num_classes; ++j) q[j] /= sum;
  return largest + std::log(sum);
}

// One example: q, the log-ratio c = log p - log q and p - q, for p = softmax(logits + delta).
class KlRow {
 public:
  explicit KlRow(int64_t num_classes)
      : q(num_classes), log_ratio(num_classes), difference(num_classes) {}

  void read(const float* logits, const float* delta) {
    const auto num_classes = static_cast<int64_t>(q.size());
    const double partition = softmax(logits, num_classes, q.data());
    const double shift = partition_shift(logits, partition, delta);
    for (int64_t j = 0; j < num_classes; ++j) {
      const double c = delta[j] - shift, log_q = logits[j] - partition;
      log_ratio[j] = c;
      difference[j] = std::abs(c) <= kSmall ? q[j] * std::expm1(c) : std::exp(log_q + c) - q[j];
    }
  }

  double divergence() const {
    double sum = 0;
    for (size_t j = 0; j < q.size(); ++j) sum += difference[j] * log_ratio[j];
    return sum;
  }

  // KL(p || q)
  double forward_kl() const {
    double sum = 0;
    for (size_t j = 0; j < q.size(); ++j) sum += (q[j] + difference[j]) * log_ratio[j];
    return sum;
  }

  std::vector<double> q, log_ratio, difference;

 private:
  // log sum_j q_j exp(delta_j)
  double partition_shift(const float* logits, double partition, const float* delta) const {
    if (q.size() == 1) return delta[0];
    double largest_delta = 0, largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t j = 0; j < q.size(); ++j) {
      const double d = delta[j];
      largest_delta = std::max(largest_delta, std::abs(d));
      largest = std::max(largest, logits[j] - partition + d);
    }
    if (largest_delta <= kSmall) {
      for (size_t j = 0; j < q.size(); ++j) sum += q[j] * std::expm1(static_cast<double>(delta[j]));
      return std::log1p(sum);
    }
    for (size_t j = 0; j < q.size(); ++j) sum += std::exp(logits[j] - partition + delta[j] - largest);
    return largest + std::log(sum);
  }
};

template <typename Row>
void each_row(const at::Tensor& logits, const Row& row) {
  const int64_t grain = std::max<int64_t>(1, kGrainClasses / logits.size(1));
  at::parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) {
    row(begin, end);
  });
}

at::Tensor dense_float(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

void write_gradients(const KlRow& row, double grad, float* dlogits, float* ddelta) {
  const double divergence = row.divergence(), mean = row.forward_kl();
  for (size_t j = 0; j < row.q.size(); ++j) {
    const double centred = row.log_ratio[j] - mean, p = row.q[j] + row.difference[j];
    dlogits[j] = static_cast<float>(grad * (row.difference[j] * centred - row.q[j] * divergence));
    ddelta[j] = static_cast<float>(grad * (p * centred + row.difference[j]));
  }
}

}  // namespace

void KlForward::run_cpu() const {
  const at::Tensor w = dense_float(logits), d = dense_float(delta);
  const float *w_data = w.const_data_ptr<float>(), *d_data = d.const_data_ptr<float>();
  float* result = out.mutable_data_ptr<float>();
  const int64_t num_classes = w.size(1);
  each_row(w, [&](int64_t begin, int64_t end) {
    KlRow row(num_classes);
    for (int64_t i = begin; i < end; ++i) {
      row.read(w_data + i * num_classes, d_data + i * num_classes);
      result[i] = static_cast<float>(row.divergence());
    }
  });
}

void KlBackward::run_cpu() const {
  const at::Tensor w = dense_float(logits), d = dense_float(delta), g = grad.contiguous();
  const FloatResult dw(dlogits), dd(ddelta);
  const float *w_data = w.const_data_ptr<float>(), *d_data = d.const_data_ptr<float>();
  const float* g_data = g.const_data_ptr<float>();
  const int64_t num_classes = w.size(1);
  each_row(w, [&](int64_t begin, int64_t end) {
    KlRow row(num_classes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i * num_classes;
      row.read(w_data + start, d_data + start);
      write_gradients(row, g_data[i], dw.data() + start, dd.data() + start);
    }
  });
  dw.finish();
  dd.finish();
}

void KlFisher::run_cpu() const {
  const at::Tensor w = dense_float(logits), t = dense_float(tangent);
  const float *w_data = w.const_data_ptr<float>(), *t_data = t.const_data_ptr<float>();
  float* result = out.mutable_data_ptr<float>();
  const int64_t num_classes = w.size(1);
  each_row(w, [&](int64_t begin, int64_t end) {
    std::vector<double> q(num_classes);
    for (int64_t i = begin; i < end; ++i) {
      const float* row = t_data + i * num_classes;
      softmax(w_data + i * num_classes, num_classes, q.data());
      double mean = 0;
      for (int64_t j = 0; j < num_classes; ++j) mean += q[j] * row[j];
      for (int64_t j = 0; j < num_classes; ++j) {
        result[i * num_classes + j] = static_cast<float>(2 * q[j] * (row[j] - mean));
      }
    }
  });
}

}  // namespace sbrrt
