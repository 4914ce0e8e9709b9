// The whole native surface: the schemas of the ops, and a Python module that tells how it was
// built. Implementations register themselves in cpu/, autograd/ and meta.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <string>

#include "autograd/only_inputs.h"
#include "common/philox.h"
#include "cpu/isa.h"
#include "cpu/widened.h"

#if !SBRRT_NO_CUDA_REASON
#include <cuda.h>
#endif

TORCH_LIBRARY(sbrrt, m) {
  m.def("adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, "
        "Tensor(c!)[] exp_avg_sq, Tensor(d!)[] ema, Tensor(e!)[] low_precision, "
        "Tensor(f!)[] ema_low_precision, Tensor learning_rate, float[] weight_decay, float beta1, "
        "float beta2, float eps, Tensor clip_factor, Tensor step, float ema_beta) -> ()");
  m.def("adamw_ema_rows_(Tensor(a!) param, Tensor grad, Tensor rows, Tensor(b!) touched, "
        "Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, Tensor(e!) ema, Tensor learning_rate, "
        "float weight_decay, float beta1, float beta2, float eps, Tensor clip_factor, "
        "Tensor step, float ema_beta) -> ()");
  // The differentiable ops have no suffix; their autograd (autograd/) calls the others.
  m.def("attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_length, "
        "int num_heads, float p, Tensor rng, int site, Tensor rows, int max_positions) -> Tensor");
  m.def("attention_forward(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, "
        "int max_length, int num_heads, float p, Tensor rng, int site, Tensor rows, "
        "int max_positions) -> (Tensor out, Tensor logsumexp)");
  m.def("attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, "
        "Tensor logsumexp, Tensor cu_seqlens, int max_length, int num_heads, float p, Tensor rng, "
        "int site, Tensor rows, int max_positions) -> (Tensor, Tensor, Tensor)");
  // The same into memory of the caller's; d query, key and value may be the parts of one [T, 3H].
  m.def("attention_forward_into(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, "
        "int max_length, int num_heads, float p, Tensor rng, int site, Tensor rows, "
        "int max_positions, Tensor(a!) out, Tensor(b!) logsumexp) -> ()");
  m.def("attention_backward_into(Tensor grad, Tensor query, Tensor key, Tensor value, "
        "Tensor out, Tensor logsumexp, Tensor cu_seqlens, int max_length, int num_heads, float p, "
        "Tensor rng, int site, Tensor rows, int max_positions, Tensor(a!) dquery, "
        "Tensor(b!) dkey, Tensor(c!) dvalue) -> ()");
  m.def("attention_jvp_into(Tensor query, Tensor key, Tensor value, Tensor query_tangent, "
        "Tensor key_tangent, Tensor value_tangent, Tensor logsumexp, Tensor cu_seqlens, "
        "int max_length, int num_heads, float p, Tensor rng, int site, Tensor rows, "
        "int max_positions, Tensor(a!) out) -> ()");
  m.def("attention_jvp(Tensor query, Tensor key, Tensor value, Tensor query_tangent, "
        "Tensor key_tangent, Tensor value_tangent, Tensor logsumexp, Tensor cu_seqlens, "
        "int max_length, int num_heads, float p, Tensor rng, int site, Tensor rows, "
        "int max_positions) -> Tensor");
  m.def("bias_gelu(Tensor x, Tensor bias) -> Tensor");
  m.def("bias_gelu_forward(Tensor x, Tensor bias) -> Tensor");
  m.def("bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool need_weight_grads) "
        "-> (Tensor, Tensor)");
  m.def("bias_gelu_jvp(Tensor x_tangent, Tensor x, Tensor bias) -> Tensor");
  // The same into memory of the caller's, which may be that of x, grad or x_tangent.
  m.def("bias_gelu_forward_into(Tensor x, Tensor bias, Tensor(a!) out) -> ()");
  m.def("bias_gelu_backward_into(Tensor grad, Tensor x, Tensor bias, bool need_weight_grads, "
        "Tensor(a!) dx) -> Tensor");
  m.def("bias_gelu_jvp_into(Tensor x_tangent, Tensor x, Tensor bias, Tensor(a!) out) -> ()");
  m.def("dropout_add_layernorm(Tensor x, Tensor bias, Tensor residual, Tensor weight, "
        "Tensor shift, float eps, float p, Tensor rng, int site, Tensor offsets) -> Tensor");
  m.def("dropout_add_layernorm_forward(Tensor x, Tensor bias, Tensor residual, Tensor weight, "
        "Tensor shift, float eps, float p, Tensor rng, int site, Tensor offsets) "
        "-> (Tensor out, Tensor mean, Tensor rstd)");
  m.def("dropout_add_layernorm_backward(Tensor grad, Tensor x, Tensor bias, Tensor residual, "
        "Tensor weight, Tensor mean, Tensor rstd, float p, Tensor rng, int site, Tensor offsets, "
        "bool need_weight_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("dropout_add_layernorm_jvp(Tensor x_tangent, Tensor residual_tangent, Tensor x, "
        "Tensor bias, Tensor residual, Tensor weight, Tensor mean, Tensor rstd, float p, "
        "Tensor rng, int site, Tensor offsets) -> Tensor");
  // The same into memory of the caller's, with a bfloat16 copy of y, and with a second summand of
  // the gradient (a matrix product's result).
  m.def("dropout_add_layernorm_forward_into(Tensor x, Tensor bias, Tensor residual, "
        "Tensor weight, Tensor shift, float eps, float p, Tensor rng, int site, Tensor offsets, "
        "Tensor(a!) out, Tensor(b!)? low, Tensor(c!) mean, Tensor(d!) rstd) -> ()");
  m.def("dropout_add_layernorm_backward_into(Tensor grad, Tensor? product, Tensor x, "
        "Tensor bias, Tensor residual, Tensor weight, Tensor mean, Tensor rstd, float p, "
        "Tensor rng, int site, Tensor offsets, bool need_weight_grads, Tensor(b!) dx, "
        "Tensor(c!) dresidual) -> (Tensor, Tensor, Tensor)");
  m.def("dropout_add_layernorm_jvp_into(Tensor x_tangent, Tensor residual_tangent, Tensor x, "
        "Tensor bias, Tensor residual, Tensor weight, Tensor mean, Tensor rstd, float p, "
        "Tensor rng, int site, Tensor offsets, Tensor(a!) out, Tensor(b!)? low) -> ()");
  m.def("dropout_mask(Tensor offsets, SymInt width, float p, Tensor rng, int site, "
        "ScalarType dtype) -> Tensor");
  m.def("embed(Tensor ids, Tensor positions, Tensor types, Tensor word, Tensor position, "
        "Tensor type, Tensor weight, Tensor shift, float eps, float p, Tensor rng, int site, "
        "Tensor offsets) -> Tensor");
  m.def("embed_forward(Tensor ids, Tensor positions, Tensor types, Tensor word, Tensor position, "
        "Tensor type, Tensor weight, Tensor shift, float eps, float p, Tensor rng, int site, "
        "Tensor offsets) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def("embed_backward(Tensor grad, Tensor ids, Tensor positions, Tensor types, Tensor word, "
        "Tensor position, Tensor type, Tensor weight, Tensor mean, Tensor rstd, float p, "
        "Tensor rng, int site, Tensor offsets, bool[5] needs, Tensor? order=None) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gradient_norm(Tensor[] grads) -> Tensor");
  // out = a b by torch's library; on the CPU every thread has a part of its own.
  m.def("mm_into(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("philox_bits(Tensor offsets, SymInt width, Tensor rng, int site) -> Tensor");
  m.def("smart_ascend(Tensor delta, Tensor gradient, Tensor mask, Tensor sequence, "
        "SymInt num_sequences, float step_size, bool normalize_gradient, str projection, "
        "float radius, str norm, str level) -> Tensor");
  m.def("smart_noise(Tensor offsets, SymInt width, Tensor rng, int site) -> Tensor");
  m.def("symmetric_kl_forward(Tensor logits, Tensor delta) -> Tensor");
  m.def("symmetric_kl_backward(Tensor grad, Tensor logits, Tensor delta) -> (Tensor, Tensor)");
  m.def("symmetric_kl_fisher(Tensor logits, Tensor tangent) -> Tensor");
}

namespace {

namespace py = pybind11;

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

#if SBRRT_NO_CUDA_REASON
// In the order of CUDA_REASONS in setup.py.
constexpr const char* kCudaReasons[] = {
    "", "SBRRT_CUDA=0 was set when it was built", "it was built with a torch that has no CUDA",
    "there was no nvcc in CUDA_HOME, PATH or /usr/local/cuda* when it was built",
    "nvcc was of another CUDA release than torch when it was built"};
#else
std::string cuda_version() {
  return std::to_string(CUDA_VERSION / 1000) + "." + std::to_string(CUDA_VERSION % 1000 / 10);
}
#endif

// pybind11 would show an at::Error with its C++ stack, as a RuntimeError.
std::string instruction_set() {
  try {
    return sbrrt::isa_name(sbrrt::cpu_isa(sbrrt::Isa::avx512_bf16));
  } catch (const c10::Error& error) {
    throw py::value_error(error.what_without_backtrace());
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["torch"] = TORCH_VERSION;
#if defined(_OPENMP)
  info["threads"] = "OpenMP";
#else
  info["threads"] = "none: built without OpenMP";
#endif
#if SBRRT_NO_CUDA_REASON
  info["cuda"] = py::none();
  info["cuda_reason"] = kCudaReasons[SBRRT_NO_CUDA_REASON];
#else
  info["cuda"] = cuda_version();
  info["cuda_reason"] = py::none();
#endif
  info["cpu_capability"] = instruction_set();
  return info;
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const auto words =
      sbrrt::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, {key[0], key[1]});
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native ops of sbrrt_fast; importing it registers torch.ops.sbrrt.";
  m.def("build_info", &build_info,
        "Compiler, torch version built against, threads, CUDA (None, with cuda_reason) and the "
        "CPU capability chosen on this machine.");
  m.def("has_bfloat16_products", &sbrrt::has_bfloat16_products,
        "Whether the CPU multiplies bfloat16 itself, so that it is not slower than float32.");
  m.def("input_gradients_only", [] { return sbrrt::input_gradients_only.load(); },
        "Whether backward passes leave out the gradients of weights.");
  m.def("set_input_gradients_only",
        [](bool is_set) { return sbrrt::input_gradients_only.exchange(is_set); },
        py::arg("is_set"), "Sets it, for the whole process; returns what it was.");
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"),
        "One Philox4x32-10 block: four 32-bit words from four counter words and two key words.");
}
