// The heads of a group of tasks on CUDA: from tensors to the launchers of task_heads.h.
#include <limits>
#include <vector>

#include "common/task_heads_op.h"
#include "cuda/binding.h"
#include "cuda/task_heads.h"

namespace sbrrt {

using namespace cuda;

namespace {

HeadList list_of(const char* op, at::IntArrayRef heads, at::ArrayRef<double> scales,
                 const at::Tensor& pooled) {
  const std::vector<Head> all = read_heads(op, heads, scales);
  TORCH_CHECK_VALUE(all.size() <= kMaxHeads, "sbrrt::", op, ": there may be at most ", kMaxHeads,
                    " heads on CUDA, got ", all.size());
  TORCH_CHECK_VALUE(pooled.size(1) <= std::numeric_limits<int>::max() / 4, "sbrrt::", op,
                    ": pooled has too many features, ", pooled.size(1));
  HeadList list{static_cast<int>(all.size()), static_cast<int>(pooled.size(1)), {}};
  std::copy(all.begin(), all.end(), list.heads);
  return list;
}

// Dense forms of pooled vectors and their factors, which must live until the launch.
struct DensePooled {
  at::Tensor pooled, factors;

  DensePooled(const at::Tensor& rows, MaybeTensorRef factor_rows) : pooled(with_dense_rows(rows)) {
    if (factor_rows) factors = with_dense_rows(*factor_rows);
  }
  PooledRows rows() const {
    return {const_rows(pooled), factors.defined() ? const_rows(factors) : ConstRows{nullptr, 0}};
  }
};

Launch launch_of(const char* op, const at::Tensor& pooled, MaybeTensorRef factors,
                 std::initializer_list<at::Tensor> others) {
  if (factors) Launch(op, pooled, {*factors});
  return Launch(op, pooled, others);
}

}  // namespace

void HeadsForward::run_cuda() const {
  const Launch launch = launch_of(kOp, pooled, factors, {weights, out});
  const DensePooled in(pooled, factors);
  const at::Tensor w = weights.contiguous();
  launch(&heads_forward,
         HeadsForwardParams{list_of(kOp, heads, scales, pooled), in.rows(),
                            w.const_data_ptr<float>(), out.numel(), out.mutable_data_ptr<float>()});
}

void HeadsJvp::run_cuda() const {
  const Launch launch = launch_of(kOp, pooled, factors, {weights, pooled_tangent, out});
  const DensePooled in(pooled, factors);
  const at::Tensor w = weights.contiguous(), t = with_dense_rows(pooled_tangent);
  launch(&heads_jvp, HeadsJvpParams{list_of(kOp, heads, scales, pooled), in.rows(),
                                    w.const_data_ptr<float>(), const_rows(t), out.numel(),
                                    out.mutable_data_ptr<float>()});
}

void HeadsVjp::run_cuda() const {
  const Launch launch = launch_of(kOp, pooled, factors, {weights, cotangents, dpooled});
  const DensePooled in(pooled, factors);
  const at::Tensor w = weights.contiguous(), c = cotangents.contiguous();
  launch(&heads_vjp,
         HeadsVjpParams{list_of(kOp, heads, scales, pooled), in.rows(), w.const_data_ptr<float>(),
                        c.const_data_ptr<float>(), pooled.size(0),
                        dpooled.mutable_data_ptr<float>()});
}

void HeadsWeightGradients::run_cuda() const {
  const Launch launch = launch_of(kOp, pooled, factors, {cotangents, dweights});
  const DensePooled in(pooled, factors);
  const at::Tensor c = cotangents.contiguous();
  HeadsWeightGradientsParams params{list_of(kOp, heads, {}, pooled), 1, {in.rows(), {}},
                                    {c.const_data_ptr<float>(), nullptr},
                                    dweights.mutable_data_ptr<float>()};
  if (!other_pooled) return launch(&heads_weight_gradients, params);
  const DensePooled other(*other_pooled, other_factors);
  const at::Tensor other_c = other_cotangents->contiguous();
  params.num_passes = 2;
  params.in[1] = other.rows();
  params.cotangents[1] = other_c.const_data_ptr<float>();
  launch(&heads_weight_gradients, params);
}

}  // namespace sbrrt
