// The heads of a group of tasks. A warp has one output of an example; a block one pooled vector's
// gradient, or a stretch of one row of weights. docs/math/task_heads.md derives the formulas.
#include "cuda/task_heads.h"

#include "cuda/common/any_dtype.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kOutputs = 4;  // of a block, a warp each
constexpr int kThreads = kOutputs * kWarpSize;

// A pooled vector times its factors.
struct Vector {
  const float *x, *factors;

  __device__ Vector(const ConstRows& rows, const ConstRows& factor_rows, int64_t row)
      : x(row_of<float>(rows, row)),
        factors(factor_rows.data == nullptr ? nullptr : row_of<float>(factor_rows, row)) {}
  __device__ float factor(int j) const { return factors == nullptr ? 1.0f : factors[j]; }
  __device__ float operator[](int j) const { return x[j] * factor(j); }
};

// An example of a head; `v` is `u` where there is one sequence.
struct Pair {
  Vector u, v;

  __device__ Pair(const ConstRows& rows, const ConstRows& factors, const Head& head,
                  int64_t example)
      : Pair(rows, factors, head.first_sequence + example * head.sequences_per_example(),
             head.sequences_per_example() - 1) {}

 private:
  __device__ Pair(const ConstRows& rows, const ConstRows& factors, int64_t row, int other)
      : u(rows, factors, row), v(rows, factors, row + other) {}
};

// One of the flat outputs.
struct Output {
  const Head& head;
  int64_t example;
  int output;

  __device__ Output(const HeadList& list, int64_t index) : Output(head_of(list, index), index) {}

 private:
  __device__ Output(const Head& of, int64_t index)
      : head(of),
        example((index - of.first_output) / of.num_outputs),
        output(static_cast<int>((index - of.first_output) % of.num_outputs)) {}
  __device__ static const Head& head_of(const HeadList& list, int64_t index) {
    int i = 0;
    while (i + 1 < list.count && index >= list.heads[i + 1].first_output) ++i;
    return list.heads[i];
  }
};

// f(j) for the lane's features.
template <typename F>
__device__ inline void each_feature(int hidden, F f) {
  for (int j = lane_index(); j < hidden; j += kWarpSize) f(j);
}

template <typename A, typename B>
__device__ inline double product(const A& a, const B& b, int hidden) {
  double sum = 0.0;
  each_feature(hidden, [&](int j) { sum += static_cast<double>(a[j]) * b[j]; });
  return warp_sum(sum);
}

__device__ inline Cosine cosine_of(const Pair& pair, double scale, int hidden) {
  return {scale, product(pair.u, pair.v, hidden), product(pair.u, pair.u, hidden),
          product(pair.v, pair.v, hidden)};
}

// The row of weights of an output, times features(j) = (of u, of v, of |u - v|), over the warp.
template <typename F>
__device__ inline float apply_weights(const Head& head, const float* weights, int output,
                                      int hidden, F features) {
  const int num_vectors = head.num_vectors();
  const float* w = weights + head.weight_offset + int64_t{output} * num_vectors * hidden;
  float sum = 0.0f;
  each_feature(hidden, [&](int j) {
    const float3 x = features(j);
    sum += w[j] * x.x;
    if (num_vectors > 1) sum += w[hidden + j] * x.y;
    if (num_vectors > 2) sum += w[2 * hidden + j] * x.z;
  });
  return warp_sum(sum);
}

__device__ inline float forward_output(const HeadsForwardParams& p, const Output& at) {
  const Pair pair(p.in.pooled, p.in.factors, at.head, at.example);
  const int hidden = p.list.hidden;
  if (at.head.is_cosine()) {
    return static_cast<float>(cosine_of(pair, at.head.scale, hidden).value);
  }
  const float sum = apply_weights(at.head, p.weights, at.output, hidden, [&](int j) {
    const float u = pair.u[j], v = pair.v[j];
    return make_float3(u, v, fabsf(u - v));
  });
  return sum + p.weights[at.head.bias_offset + at.output];
}

__device__ inline float jvp_output(const HeadsJvpParams& p, const Output& at) {
  const Pair pair(p.in.pooled, p.in.factors, at.head, at.example);
  const Pair tangent(p.tangent, p.in.factors, at.head, at.example);
  const int hidden = p.list.hidden;
  if (at.head.is_cosine()) {
    const Cosine cosine = cosine_of(pair, at.head.scale, hidden);
    const double across =
        product(pair.v, tangent.u, hidden) + product(pair.u, tangent.v, hidden);
    return static_cast<float>(cosine.across * across -
                              cosine.along_u * product(pair.u, tangent.u, hidden) -
                              cosine.along_v * product(pair.v, tangent.v, hidden));
  }
  return apply_weights(at.head, p.weights, at.output, hidden, [&](int j) {
    const float du = tangent.u[j], dv = tangent.v[j];
    return make_float3(du, dv, sign_of(pair.u[j] - pair.v[j]) * (du - dv));
  });
}

__global__ void __launch_bounds__(kThreads, 1) heads_forward_kernel(const HeadsForwardParams p) {
  await_previous_kernel();
  const int64_t index = int64_t{blockIdx.x} * kOutputs + warp_index();
  if (index >= p.num_outputs) return;
  const float result = forward_output(p, Output(p.list, index));
  if (lane_index() == 0) p.out[index] = result;
}

__global__ void __launch_bounds__(kThreads, 1) heads_jvp_kernel(const HeadsJvpParams p) {
  await_previous_kernel();
  const int64_t index = int64_t{blockIdx.x} * kOutputs + warp_index();
  if (index >= p.num_outputs) return;
  const float result = jvp_output(p, Output(p.list, index));
  if (lane_index() == 0) p.out[index] = result;
}

// The number of the head that has a sequence, or the number of heads.
__device__ inline int head_of_sequence(const HeadList& list, int64_t row) {
  int i = 0;
  while (i < list.count) {
    const int64_t from_first = row - list.heads[i].first_sequence;
    if (from_first >= 0 && from_first < list.heads[i].num_sequences()) break;
    ++i;
  }
  return i;
}

// The gradient of feature j of an example's first vector (side 0) or its second; sign is that of
// its difference to the other.
__device__ inline float linear_gradient(const HeadsVjpParams& p, const Head& head,
                                        const float* cotangents, float sign, int side, int j) {
  const int hidden = p.list.hidden, num_vectors = head.num_vectors();
  const float* w = p.weights + head.weight_offset + j;
  float sum = 0.0f, by_difference = 0.0f;
  for (int c = 0; c < head.num_outputs; ++c, w += int64_t{num_vectors} * hidden) {
    sum += cotangents[c] * w[side * hidden];
    if (num_vectors > 2) by_difference += cotangents[c] * w[2 * hidden];
  }
  return sum + sign * by_difference;
}

__global__ void __launch_bounds__(kThreads, 1) heads_vjp_kernel(const HeadsVjpParams p) {
  await_previous_kernel();
  const int64_t row = blockIdx.x;
  const int hidden = p.list.hidden, number = head_of_sequence(p.list, row);
  float* out = p.dpooled + row * hidden;
  if (number == p.list.count) {
    for (int j = threadIdx.x; j < hidden; j += kThreads) out[j] = 0.0f;
    return;
  }
  const Head& head = p.list.heads[number];
  const int per_example = head.sequences_per_example();
  const int64_t example = (row - head.first_sequence) / per_example;
  const int side = static_cast<int>((row - head.first_sequence) % per_example);
  const float* cotangents = p.cotangents + head.first_output + example * head.num_outputs;
  const Vector own(p.in.pooled, p.in.factors, row);
  const Vector other(p.in.pooled, p.in.factors, row + per_example - 1 - 2 * side);
  if (head.is_cosine()) {  // every warp has the products: they are a few hundred numbers
    const Cosine cosine(head.scale, product(own, other, hidden), product(own, own, hidden),
                        product(other, other, hidden));
    for (int j = threadIdx.x; j < hidden; j += kThreads) {
      const double grad = cosine.across * other[j] - cosine.along_u * own[j];
      out[j] = static_cast<float>(cotangents[0] * grad) * own.factor(j);
    }
    return;
  }
  for (int j = threadIdx.x; j < hidden; j += kThreads) {
    const float sign = sign_of(own[j] - other[j]);
    out[j] = linear_gradient(p, head, cotangents, sign, side, j) * own.factor(j);
  }
}

// Feature j of an example: of u, v or |u - v|.
__device__ inline float feature_of(const Pair& pair, int hidden, int j) {
  if (j < hidden) return pair.u[j];
  if (j < 2 * hidden) return pair.v[j - hidden];
  return fabsf(pair.u[j - 2 * hidden] - pair.v[j - 2 * hidden]);
}

// A thread has one weight of an output, or its bias; blocks go through the outputs of all heads.
__global__ void __launch_bounds__(kThreads, 1)
    heads_weight_gradients_kernel(const HeadsWeightGradientsParams p) {
  await_previous_kernel();
  int64_t output = blockIdx.x;
  int i = 0;
  while (p.list.heads[i].is_cosine() || output >= p.list.heads[i].num_outputs) {
    if (!p.list.heads[i].is_cosine()) output -= p.list.heads[i].num_outputs;
    ++i;
  }
  const Head& head = p.list.heads[i];
  const int hidden = p.list.hidden, num_features = head.num_vectors() * hidden;
  const int j = blockIdx.y * kThreads + threadIdx.x;
  if (j > num_features) return;
  const bool is_bias = j == num_features;
  float sum = 0.0f;
  for (int pass = 0; pass < p.num_passes; ++pass) {
    const PooledRows& in = p.in[pass];
    const float* c = p.cotangents[pass] + head.first_output + output;
    for (int64_t example = 0; example < head.num_examples; ++example) {
      const Pair pair(in.pooled, in.factors, head, example);
      const float x = is_bias ? 1.0f : feature_of(pair, hidden, j);
      sum += c[example * head.num_outputs] * x;
    }
  }
  float* to = p.dweights + (is_bias ? head.bias_offset + output
                                    : head.weight_offset + output * num_features + j);
  *to = sum;
}

dim3 blocks_of_outputs(int64_t num_outputs) {
  return dim3(static_cast<unsigned>(ceil_div(num_outputs, kOutputs)));
}

}  // namespace

cudaError_t heads_forward(const HeadsForwardParams& p, cudaStream_t stream) {
  const dim3 grid = blocks_of_outputs(p.num_outputs);
  return launch<heads_forward_kernel>(grid, dim3(kThreads), 0, stream, p);
}

cudaError_t heads_jvp(const HeadsJvpParams& p, cudaStream_t stream) {
  const dim3 grid = blocks_of_outputs(p.num_outputs);
  return launch<heads_jvp_kernel>(grid, dim3(kThreads), 0, stream, p);
}

cudaError_t heads_vjp(const HeadsVjpParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.num_sequences));
  return launch<heads_vjp_kernel>(grid, dim3(kThreads), 0, stream, p);
}

cudaError_t heads_weight_gradients(const HeadsWeightGradientsParams& p, cudaStream_t stream) {
  int64_t num_rows = 0, num_columns = 0;
  for (int i = 0; i < p.list.count; ++i) {
    const Head& head = p.list.heads[i];
    if (head.is_cosine()) continue;
    num_rows += head.num_outputs;
    const int64_t columns = int64_t{head.num_vectors()} * p.list.hidden + 1;
    num_columns = columns > num_columns ? columns : num_columns;
  }
  const dim3 grid(static_cast<unsigned>(num_rows),
                  static_cast<unsigned>(ceil_div(num_columns, kThreads)));
  return launch<heads_weight_gradients_kernel>(grid, dim3(kThreads), 0, stream, p);
}

}  // namespace sbrrt::cuda
