// The Python module of the extension, which tells how it was built. Importing it loads the ops
// (registration.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <array>
#include <string>

#include "common/philox.h"
#include "cpu/isa.h"
#include "cpu/widened.h"

#if !SBRRT_NO_CUDA_REASON
#include <cuda.h>
#endif

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
  m.doc() = "Native ops of sbrrt_fast; importing it registers what torch.ops.sbrrt does.";
  m.def("build_info", &build_info,
        "Compiler, torch version built against, threads, CUDA (None, with cuda_reason) and the "
        "CPU capability chosen on this machine.");
  m.def("has_bfloat16_products", &sbrrt::has_bfloat16_products,
        "Whether the CPU multiplies bfloat16 itself, so that it is not slower than float32.");
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"),
        "One Philox4x32-10 block: four 32-bit words from four counter words and two key words.");
}
