// smart_ascend on CUDA: from tensors to the launcher of smart_ascend.h.
#include <torch/library.h>

#include <limits>

#include "common/smart_ascend_checks.h"
#include "cuda/binding.h"
#include "cuda/smart_ascend.h"

namespace sbrrt::cuda::smart_ascend_binding {
namespace {


at::Tensor ascend(const at::Tensor& delta, const at::Tensor& gradient, const at::Tensor& mask,
                  const at::Tensor& sequence, int64_t num_sequences, double step_size,
                  bool normalize_gradient, c10::string_view projection, double radius,
                  c10::string_view norm, c10::string_view level) {
  constexpr auto op = "smart_ascend";
  check_ascend_tensors(delta, gradient, mask, sequence, at::kCUDA);
  const AscendOptions options =
      ascend_options(step_size, normalize_gradient, projection, radius, norm, level);
  TORCH_CHECK_VALUE(delta.size(1) <= std::numeric_limits<int>::max(), "sbrrt::", op,
                    ": hidden may be at most 2^31 - 1, got ", delta.size(1));
  const Launch launch(op, delta, {gradient, mask, sequence});
  const at::Tensor out = at::empty(delta.sizes(), delta.options());
  if (out.numel() == 0) return out;
  const at::Tensor from = with_dense_rows(delta), along = with_dense_rows(gradient);
  const at::Tensor kept = mask.contiguous(), owner = sequence.contiguous();
  launch(&smart_ascend,
         AscendParams{options, delta.size(0), num_sequences, static_cast<int>(delta.size(1)),
                      element_type(delta), element_type(gradient), const_rows(from),
                      const_rows(along), kept.const_data_ptr<bool>(),
                      owner.const_data_ptr<int64_t>(), out.mutable_data_ptr()});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) { m.impl("smart_ascend", &ascend); }

}  // namespace sbrrt::cuda::smart_ascend_binding
