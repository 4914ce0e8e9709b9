// smart_ascend on CUDA: from tensors to the launcher of smart_ascend.h.
#include <limits>

#include "common/smart_ascend_op.h"
#include "cuda/binding.h"
#include "cuda/smart_ascend.h"

namespace sbrrt {

using namespace cuda;

void SmartAscend::run_cuda() const {
  TORCH_CHECK_VALUE(delta.size(1) <= std::numeric_limits<int>::max(), "sbrrt::", kOp,
                    ": hidden may be at most 2^31 - 1, got ", delta.size(1));
  const Launch launch(kOp, delta, {gradient, mask, sequence, out});
  if (out.numel() == 0) return;
  const at::Tensor from = with_dense_rows(delta), along = with_dense_rows(gradient);
  const at::Tensor kept = mask.contiguous(), owner = sequence.contiguous();
  launch(&smart_ascend,
         AscendParams{options(), delta.size(0), num_sequences.guard_int(__FILE__, __LINE__),
                      static_cast<int>(delta.size(1)), element_type(delta),
                      element_type(gradient), const_rows(from), const_rows(along),
                      kept.const_data_ptr<bool>(), owner.const_data_ptr<int64_t>(),
                      out.mutable_data_ptr()});
}

}  // namespace sbrrt
