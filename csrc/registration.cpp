// Gives the dispatcher every op (common/op.h) for the CPU, for CUDA and for tracing, which reads no
// memory. Python defines the schemas (sbrrt_fast/ops).
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "common/adamw_op.h"
#include "common/attention_op.h"
#include "common/column_sums_op.h"
#include "common/embed_op.h"
#include "common/gelu_op.h"
#include "common/layernorm_op.h"
#include "common/matmul_op.h"
#include "common/objective_op.h"
#include "common/philox_op.h"
#include "common/smart_ascend_op.h"
#include "common/symmetric_kl_op.h"
#include "common/task_heads_op.h"

namespace sbrrt {
namespace {

template <at::DeviceType device, typename Op, typename Signature = typename Op::Signature>
struct Implementation;

template <at::DeviceType device, typename Op, typename... Args>
struct Implementation<device, Op, void(Args...)> {
  static void call(Args... args) {
    const Op op{args...};
    const WriteSet writes = op.check(device);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if constexpr (device == at::kCPU) op.run_cpu();
    if constexpr (device == at::kCUDA) op.run_cuda();
    writes.count_change();
  }
};

template <at::DeviceType device, typename Op>
void add(torch::Library& m, const char* name) {
  m.impl(name, &Implementation<device, Op>::call);
}

template <at::DeviceType device>
void add_all(torch::Library& m) {
  add<device, AdamwEma>(m, "adamw_ema_");
  add<device, AdamwEmaRows>(m, "adamw_ema_rows_");
  add<device, AttentionForward>(m, "attention_forward_into");
  add<device, AttentionBackward>(m, "attention_backward_into");
  add<device, AttentionJvp>(m, "attention_jvp_into");
  add<device, GeluForward>(m, "bias_gelu_forward_into");
  add<device, GeluBackward>(m, "bias_gelu_backward_into");
  add<device, GeluJvp>(m, "bias_gelu_jvp_into");
  add<device, ColumnSums>(m, "column_sums_into");
  add<device, LayerNormForward>(m, "dropout_add_layernorm_forward_into");
  add<device, LayerNormBackward>(m, "dropout_add_layernorm_backward_into");
  add<device, LayerNormJvp>(m, "dropout_add_layernorm_jvp_into");
  add<device, DropoutMask>(m, "dropout_mask_into");
  add<device, EmbedForward>(m, "embed_forward_into");
  add<device, EmbedBackward>(m, "embed_backward_into");
  add<device, GradientNorm>(m, "gradient_norm_into");
  add<device, HeadsForward>(m, "heads_forward_into");
  add<device, HeadsJvp>(m, "heads_jvp_into");
  add<device, HeadsVjp>(m, "heads_vjp_into");
  add<device, HeadsWeightGradients>(m, "heads_weight_gradients_into");
  add<device, Matmul>(m, "mm_into");
  add<device, ObjectiveOp>(m, "objective_into");
  add<device, PhiloxBits>(m, "philox_bits_into");
  add<device, SmartAscend>(m, "smart_ascend_into");
  add<device, SmartNoise>(m, "smart_noise_into");
  add<device, SmoothnessCotangents>(m, "smoothness_cotangents_into");
  add<device, SmoothnessValues>(m, "smoothness_values_into");
  add<device, KlForward>(m, "symmetric_kl_forward_into");
  add<device, KlBackward>(m, "symmetric_kl_backward_into");
  add<device, KlFisher>(m, "symmetric_kl_fisher_into");
}

// For gradients of a kind that no device has a kernel for, such as sparse ones.
void gradient_norm_elsewhere(at::TensorList grads, double, TensorRef) {
  TORCH_CHECK_VALUE(false, "sbrrt::gradient_norm: grads must be dense tensors on the CPU or a CUDA "
                    "GPU, got ", grads.empty() ? "none" : describe(grads[0]));
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) { add_all<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(sbrrt, Meta, m) { add_all<at::kMeta>(m); }
#if !SBRRT_NO_CUDA_REASON
TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) { add_all<at::kCUDA>(m); }
#endif
TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) {
  m.impl("gradient_norm_into", &gradient_norm_elsewhere);
}

}  // namespace sbrrt
