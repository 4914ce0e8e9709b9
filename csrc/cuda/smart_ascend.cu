// One ascent step per group of tokens: a warp has a token, or a block of warps has a sequence. Norms
// and results are computed in double, which squares of the smallest and largest gradients do not leave;
// docs/math/smart_ascend.md has the formulas.
#include "cuda/smart_ascend.h"

#include "cuda/common/any_dtype.cuh"
#include "cuda/common/launch.cuh"

namespace sbrrt::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
// Four blocks at a time leave 64 registers a thread; without a number nvcc keeps to 32 or 40 and spills.
constexpr int kBlocks = 4;

// The tokens that a warp has of its group, one after the other, and the elements that a lane has of
// each, N at a time.
template <int N, bool kSequence>
class Group {
 public:
  __device__ explicit Group(const AscendParams& p)
      : p_(p), id_(kSequence ? blockIdx.x : int64_t{blockIdx.x} * kWarps + warp_index()) {}

  // f(token, column) for the elements of kept tokens. The warp's lanes come back together.
  template <typename F>
  __device__ void each_kept(F f) const {
    each_token([&](int64_t token) { return is_mine(token) && is_kept(token); }, f);
  }

  // The same for tokens that may not be perturbed; the first block takes those of no sequence.
  template <typename F>
  __device__ void each_other(F f) const {
    each_token([&](int64_t token) { return is_mine(token) && !is_kept(token); }, f);
  }

 private:
  __device__ bool is_in_range(int64_t token) const {
    return p_.sequence[token] >= 0 && p_.sequence[token] < p_.num_sequences;
  }
  __device__ bool is_kept(int64_t token) const { return p_.mask[token] && is_in_range(token); }
  __device__ bool is_mine(int64_t token) const {
    if constexpr (!kSequence) return token == id_;
    return is_in_range(token) ? p_.sequence[token] == id_ : id_ == 0;
  }

  template <typename Predicate, typename F>
  __device__ void each_token(Predicate is_member, F f) const {
    const int64_t begin = kSequence ? warp_index() * kWarpSize : id_ / kWarpSize * kWarpSize;
    const int64_t end = kSequence || begin + kWarpSize > p_.num_tokens ? p_.num_tokens
                                                                       : begin + kWarpSize;
    for (int64_t tile = begin; tile < end; tile += kThreads) {
      const int64_t token = tile + lane_index();
      unsigned matches = __ballot_sync(kFullMask, token < p_.num_tokens && is_member(token));
      for (; matches != 0; matches &= matches - 1) {
        const int64_t match = tile + __ffs(static_cast<int>(matches)) - 1;
        for (int j = lane_index() * N; j < p_.width; j += kWarpSize * N) f(match, j);
      }
    }
  }

  const AscendParams& p_;
  int64_t id_;
};

// What is measured and projected: along * gradient + stay * delta.
template <int N>
struct Source {
  const AscendParams& p;
  double along, stay;

  __device__ void load(int64_t token, int column, double (&x)[N]) const {
    float gradient[N] = {}, delta[N] = {};
    if (along != 0) {
      load_any(p.gradient.data, p.gradient_dtype, token * p.gradient.stride + column, gradient);
    }
    if (stay != 0) load_any(p.delta.data, p.delta_dtype, token * p.delta.stride + column, delta);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = fma(along, static_cast<double>(gradient[i]), stay * delta[i]);
  }
};

// The larger one; NaN where one of them is, unlike fmax.
__device__ inline double larger(double a, double b) { return a > b || a != a ? a : b; }

// The group's total of the lanes' sums, or their maximum.
template <bool kSequence>
__device__ inline double group_total(double x, bool is_maximum, double* shared) {
  const auto merged = [&](double a, double b) { return is_maximum ? larger(a, b) : a + b; };
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = merged(x, __shfl_xor_sync(kFullMask, x, offset));
  }
  if constexpr (kSequence) {
    if (lane_index() == 0) shared[warp_index()] = x;
    __syncthreads();
    x = shared[0];
    for (int warp = 1; warp < kWarps; ++warp) x = merged(x, shared[warp]);
    __syncthreads();
  }
  return x;
}

template <int N, bool kSequence>
__device__ inline double group_norm(const Group<N, kSequence>& group, const Source<N>& source,
                                    double* shared) {
  const bool is_sup = source.p.options.is_sup;
  double size = 0.0;
  group.each_kept([&](int64_t token, int column) {
    double x[N];
    source.load(token, column, x);
#pragma unroll
    for (int i = 0; i < N; ++i) size = is_sup ? larger(size, fabs(x[i])) : fma(x[i], x[i], size);
  });
  size = group_total<kSequence>(size, is_sup, shared);
  return is_sup ? size : sqrt(size);
}

// The step's source, given the gradient's norm where it is needed. An infinite step leaves the
// gradient's direction, or the perturbation where the gradient is zero.
template <int N>
__device__ inline Source<N> source_of(const AscendParams& p, double size) {
  const AscendOptions& options = p.options;
  if (options.is_infinite) return {p, size > 0 ? 1.0 : 0.0, size > 0 ? 0.0 : 1.0};
  if (!options.normalize_gradient) return {p, options.step_size, 1.0};
  return {p, size == 0 ? 0.0 : options.step_size / size, 1.0};
}

__device__ inline double projected(const AscendOptions& options, double scale, double x) {
  const double radius = options.radius;
  if (options.is_clamp) return x < -radius ? -radius : x > radius ? radius : x;
  if (options.is_sign) return x > 0 ? radius : x < 0 ? -radius : 0.0;
  return x * scale;
}

template <int N, bool kSequence>
__global__ void __launch_bounds__(kThreads, kBlocks) smart_ascend_kernel(const AscendParams p) {
  await_previous_kernel();
  SBRRT_SHARED(double, shared, [kWarps]);
  const AscendOptions& options = p.options;
  const Group<N, kSequence> group(p);
  double size = 0.0;
  if (options.is_infinite || options.normalize_gradient) {
    size = group_norm(group, Source<N>{p, 1.0, 0.0}, shared);
  }
  const Source<N> source = source_of<N>(p, size);
  double scale = 1.0;
  if (!options.is_clamp && !options.is_sign) {
    const bool is_known = options.is_infinite && size > 0;
    const double norm = is_known ? size : group_norm(group, source, shared);
    const bool is_limit = options.is_ball && !options.is_infinite;
    if (norm > (is_limit ? options.radius : 0.0)) scale = options.radius / norm;
  }
  group.each_kept([&](int64_t token, int column) {
    double x[N];
    float result[N];
    source.load(token, column, x);
#pragma unroll
    for (int i = 0; i < N; ++i) result[i] = static_cast<float>(projected(options, scale, x[i]));
    store_any(p.out, p.delta_dtype, token * p.width + column, result);
  });
  group.each_other([&](int64_t token, int column) {
    const float zeros[N] = {};
    store_any(p.out, p.delta_dtype, token * p.width + column, zeros);
  });
}

template <int N, bool kSequence>
cudaError_t launch_ascend(const AscendParams& p, cudaStream_t stream) {
  const int64_t num_sequences = p.num_sequences > 0 ? p.num_sequences : 1;
  const int64_t num_blocks = kSequence ? num_sequences : ceil_div(p.num_tokens, kWarps);
  return launch<smart_ascend_kernel<N, kSequence>>(dim3(static_cast<unsigned>(num_blocks)),
                                                   dim3(kThreads), 0, stream, p);
}

}  // namespace

cudaError_t smart_ascend(const AscendParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  const bool is_vector = p.width % 4 == 0 && is_whole(p.delta, 4) && is_whole(p.gradient, 4) &&
                         is_aligned(p.out);
  if (is_vector) {
    return p.options.is_sequence ? launch_ascend<4, true>(p, stream)
                                 : launch_ascend<4, false>(p, stream);
  }
  return p.options.is_sequence ? launch_ascend<1, true>(p, stream)
                               : launch_ascend<1, false>(p, stream);
}

}  // namespace sbrrt::cuda
