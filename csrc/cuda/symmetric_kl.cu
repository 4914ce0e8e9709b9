// Symmetric KL of softmax(logits + delta) and softmax(logits) in the delta form, its gradients and its
// Fisher product. A warp has an example and computes in double, so that what remains is the rounding
// of inputs and results; docs/math/symmetric_kl.md derives the formulas.
#include "cuda/symmetric_kl.h"

#include "cuda/common/any_dtype.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kExamples = 4;  // of a block, a warp each
constexpr int kThreads = kExamples * kWarpSize;
constexpr double kSmall = 1.0;  // deltas up to this go through expm1 and log1p

// One example's logits and delta, and the sums behind its probabilities.
class KlRow {
 public:
  __device__ KlRow(const KlParams& p, int64_t example) : p_(p), example_(example) {
    float largest = -INFINITY;
    each_class([&](int j) { largest = fmaxf(largest, logit(j)); });
    largest = warp_max(largest);
    double sum = 0.0;
    each_class([&](int j) { sum += exp(static_cast<double>(logit(j)) - largest); });
    partition_ = largest + log(warp_sum(sum));
  }

  // f(class) for the lane's classes.
  template <typename F>
  __device__ void each_class(F f) const {
    for (int j = lane_index(); j < p_.num_classes; j += kWarpSize) f(j);
  }

  __device__ float logit(int j) const { return element(p_.logits, j); }
  __device__ float other(int j) const { return element(p_.other, j); }
  __device__ double log_q(int j) const { return logit(j) - partition_; }
  __device__ double q(int j) const { return exp(log_q(j)); }

 private:
  __device__ float element(const KlTensor& x, int j) const {
    return load_any(x.data, x.dtype, example_ * x.row_stride + j * x.class_stride);
  }

  const KlParams& p_;
  int64_t example_;
  double partition_;
};

// log sum_j q_j exp(delta_j)
__device__ inline double partition_shift(const KlRow& row, int num_classes) {
  if (num_classes == 1) return row.other(0);
  float largest_delta = 0.0f, largest = -INFINITY;
  row.each_class([&](int j) {
    largest_delta = fmaxf(largest_delta, fabsf(row.other(j)));
    largest = fmaxf(largest, static_cast<float>(row.log_q(j) + row.other(j)));
  });
  largest_delta = warp_max(largest_delta);
  largest = warp_max(largest);
  const bool is_small = largest_delta <= kSmall;
  double sum = 0.0;
  row.each_class([&](int j) {
    const double d = row.other(j);
    sum += is_small ? row.q(j) * expm1(d) : exp(row.log_q(j) + d - largest);
  });
  sum = warp_sum(sum);
  return is_small ? log1p(sum) : largest + log(sum);
}

// log p_j - log q_j, and p_j - q_j.
struct ClassTerms {
  double log_ratio, difference;

  __device__ ClassTerms(const KlRow& row, double shift, int j)
      : log_ratio(row.other(j) - shift),
        difference(fabs(log_ratio) <= kSmall ? row.q(j) * expm1(log_ratio)
                                         : exp(row.log_q(j) + log_ratio) - row.q(j)) {}
};

// The warp's example, or num_examples where there is none.
__device__ inline int64_t example_of(const KlParams& p) {
  const int64_t example = int64_t{blockIdx.x} * kExamples + warp_index();
  return example < p.num_examples ? example : p.num_examples;
}

__global__ void __launch_bounds__(kThreads, 1) kl_forward_kernel(const KlForwardParams p) {
  await_previous_kernel();
  const int64_t example = example_of(p.in);
  if (example == p.in.num_examples) return;
  const KlRow row(p.in, example);
  const double shift = partition_shift(row, p.in.num_classes);
  double divergence = 0.0;
  row.each_class([&](int j) {
    const ClassTerms c(row, shift, j);
    divergence += c.difference * c.log_ratio;
  });
  divergence = warp_sum(divergence);
  if (lane_index() == 0) p.out[example] = static_cast<float>(divergence);
}

__global__ void __launch_bounds__(kThreads, 1) kl_backward_kernel(const KlBackwardParams p) {
  await_previous_kernel();
  const int64_t example = example_of(p.in);
  if (example == p.in.num_examples) return;
  const KlRow row(p.in, example);
  const double shift = partition_shift(row, p.in.num_classes);
  double divergence = 0.0, mean = 0.0;  // mean: E_p c = KL(p || q)
  row.each_class([&](int j) {
    const ClassTerms c(row, shift, j);
    divergence += c.difference * c.log_ratio;
    mean += (row.q(j) + c.difference) * c.log_ratio;
  });
  divergence = warp_sum(divergence);
  mean = warp_sum(mean);
  const double grad = p.grad[example * p.grad_stride];
  row.each_class([&](int j) {
    const ClassTerms c(row, shift, j);
    const double q = row.q(j), centred = c.log_ratio - mean;
    const int64_t index = example * p.in.num_classes + j;
    store_any(p.dlogits, p.in.logits.dtype, index,
              static_cast<float>(grad * (c.difference * centred - q * divergence)));
    store_any(p.ddelta, p.in.other.dtype, index,
              static_cast<float>(grad * ((q + c.difference) * centred + c.difference)));
  });
}

__global__ void __launch_bounds__(kThreads, 1) kl_fisher_kernel(const KlFisherParams p) {
  await_previous_kernel();
  const int64_t example = example_of(p.in);
  if (example == p.in.num_examples) return;
  const KlRow row(p.in, example);
  double mean = 0.0;
  row.each_class([&](int j) { mean += row.q(j) * row.other(j); });
  mean = warp_sum(mean);
  row.each_class([&](int j) {
    p.out[example * p.in.num_classes + j] =
        static_cast<float>(2.0 * row.q(j) * (row.other(j) - mean));
  });
}

template <auto kernel, typename Params>
cudaError_t launch_examples(const Params& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.in.num_examples, kExamples)));
  return launch<kernel>(grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

cudaError_t symmetric_kl_forward(const KlForwardParams& p, cudaStream_t stream) {
  return launch_examples<kl_forward_kernel>(p, stream);
}

cudaError_t symmetric_kl_backward(const KlBackwardParams& p, cudaStream_t stream) {
  return launch_examples<kl_backward_kernel>(p, stream);
}

cudaError_t symmetric_kl_fisher(const KlFisherParams& p, cudaStream_t stream) {
  return launch_examples<kl_fisher_kernel>(p, stream);
}

}  // namespace sbrrt::cuda
