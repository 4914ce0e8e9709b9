// The shape and dtype of every op's result, for tracing and compilation; no memory is read.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/SymBool.h>
#include <torch/library.h>

#include "common/checks.h"

namespace sbrrt::meta {
namespace {

at::Tensor rows_meta(const char* op, const at::Tensor& offsets, const c10::SymInt& width,
                     const at::Tensor& rng, at::ScalarType dtype) {
  check_offsets(op, offsets);
  check_rng(op, rng);
  check_device(op, "offsets", offsets, at::kMeta);
  check_device(op, "rng", rng, at::kMeta);
  TORCH_SYM_CHECK(width.sym_ge(1), "sbrrt::", op, ": width must be at least 1");
  return at::empty_symint({offsets.sym_size(0), width}, offsets.options().dtype(dtype));
}

at::Tensor dropout_mask_meta(const at::Tensor& offsets, c10::SymInt width, double p,
                             const at::Tensor& rng, int64_t site, at::ScalarType dtype) {
  check_probability("dropout_mask", p);
  check_floating("dropout_mask", dtype);
  return rows_meta("dropout_mask", offsets, width, rng, dtype);
}

at::Tensor philox_bits_meta(const at::Tensor& offsets, c10::SymInt width, const at::Tensor& rng,
                            int64_t site) {
  return rows_meta("philox_bits", offsets, width, rng, at::kInt);
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("dropout_mask", &dropout_mask_meta);
  m.impl("philox_bits", &philox_bits_meta);
}

}  // namespace sbrrt::meta
