// The whole native surface: the schemas of the ops, and a Python module that tells how it was
// built. Implementations register themselves in cpu/ and meta.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <string>

#include "common/philox.h"
#include "cpu/isa.h"

TORCH_LIBRARY(sbrrt, m) {
  m.def("dropout_mask(Tensor offsets, SymInt width, float p, Tensor rng, int site, "
        "ScalarType dtype) -> Tensor");
  m.def("philox_bits(Tensor offsets, SymInt width, Tensor rng, int site) -> Tensor");
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

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["torch"] = TORCH_VERSION;
#if defined(_OPENMP)
  info["threads"] = "OpenMP";
#else
  info["threads"] = "none: built without OpenMP";
#endif
  info["cuda"] = py::none();
  info["cuda_reason"] = "this version of sbrrt_fast has no CUDA sources";
  info["cpu_capability"] = sbrrt::isa_name(sbrrt::cpu_isa());
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
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"),
        "One Philox4x32-10 block: four 32-bit words from four counter words and two key words.");
}
