// Gives the dispatcher every op (common/op.h) for the CPU, for CUDA and for tracing, which reads no
// memory. Python defines the schemas (sbrrt_fast/ops).
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "common/adamw_op.h"
#include "common/attention_op.h"
#include "common/embed_op.h"
#include "common/gelu_op.h"
#include "common/layernorm_op.h"
#include "common/matmul_op.h"
#include "common/philox_op.h"
#include "common/smart_ascend_op.h"
#include "common/symmetric_kl_op.h"

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

template <at::DeviceType device>
void register_all(torch::Library& m) {
  const auto add = [&]<typename Op>(const char* name) {
    m.impl(name, &Implementation<device, Op>::call);
  };
  add.template operator()<AdamwEma>("adamw_ema_");
  add.template operator()<AdamwEmaRows>("adamw_ema_rows_");
  add.template operator()<AttentionForward>("attention_forward_into");
  add.template operator()<AttentionBackward>("attention_backward_into");
  add.template operator()<AttentionJvp>("attention_jvp_into");
  add.template operator()<GeluForward>("bias_gelu_forward_into");
  add.template operator()<GeluBackward>("bias_gelu_backward_into");
  add.template operator()<GeluJvp>("bias_gelu_jvp_into");
  add.template operator()<LayerNormForward>("dropout_add_layernorm_forward_into");
  add.template operator()<LayerNormBackward>("dropout_add_layernorm_backward_into");
  add.template operator()<LayerNormJvp>("dropout_add_layernorm_jvp_into");
  add.template operator()<DropoutMask>("dropout_mask_into");
  add.template operator()<EmbedForward>("embed_forward_into");
  add.template operator()<EmbedBackward>("embed_backward_into");
  add.template operator()<GradientNorm>("gradient_norm_into");
  add.template operator()<Matmul>("mm_into");
  add.template operator()<PhiloxBits>("philox_bits_into");
  add.template operator()<SmartAscend>("smart_ascend_into");
  add.template operator()<SmartNoise>("smart_noise_into");
  add.template operator()<KlForward>("symmetric_kl_forward_into");
  add.template operator()<KlBackward>("symmetric_kl_backward_into");
  add.template operator()<KlFisher>("symmetric_kl_fisher_into");
}

// For gradients of a kind that no device has a kernel for, such as sparse ones.
void gradient_norm_elsewhere(at::TensorList grads, TensorRef) {
  TORCH_CHECK_VALUE(false, "sbrrt::gradient_norm: grads must be dense tensors on the CPU or a CUDA "
                    "GPU, got ", grads.empty() ? "none" : describe(grads[0]));
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CPU, m) { register_all<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(sbrrt, Meta, m) { register_all<at::kMeta>(m); }
#if !SBRRT_NO_CUDA_REASON
TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) { register_all<at::kCUDA>(m); }
#endif
TORCH_LIBRARY_IMPL(sbrrt, CompositeExplicitAutograd, m) {
  m.impl("gradient_norm_into", &gradient_norm_elsewhere);
}

}  // namespace sbrrt
