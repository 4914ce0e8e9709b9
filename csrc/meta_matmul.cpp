// Checks of mm_into for tracing; no memory is read.
#include <torch/library.h>

#include "common/matmul_checks.h"

namespace sbrrt::meta_matmul {
namespace {

void mm_into_meta(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  matmul_write_set("mm_into", a, b, out, at::kMeta).count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) { m.impl("mm_into", &mm_into_meta); }

}  // namespace sbrrt::meta_matmul
