// mm_into on CUDA: the library's product, into memory of the caller's, whose rows may have gaps.
#include <ATen/ops/mm.h>

#include "common/matmul_op.h"

namespace sbrrt {

// A library call reads a gap between rows as its leading dimension: nothing is copied.
void Matmul::run_cuda() const {
  at::Tensor whole = out;
  at::mm_out(whole, a, b);
}

}  // namespace sbrrt
