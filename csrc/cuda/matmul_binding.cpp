// mm_into on CUDA: the library's product, into memory of the caller's, whose rows may have gaps.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "common/matmul_checks.h"

namespace sbrrt::cuda::matmul_binding {
namespace {

// A library call reads a gap between rows as its leading dimension: nothing is copied.
void mm_into(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  const WriteSet writes = matmul_write_set("mm_into", a, b, out, at::kCUDA);
  const at::AutoDispatchBelowADInplaceOrView guard;
  at::Tensor whole = out;
  at::mm_out(whole, a, b);
  writes.count_change();
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) { m.impl("mm_into", &mm_into); }

}  // namespace sbrrt::cuda::matmul_binding
