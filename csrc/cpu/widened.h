// Float32 matrices in the place of bfloat16 ones, in memory that a thread keeps for the next.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <cstdint>
#include <optional>

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace sbrrt {

// Whether to hand bfloat16 products to torch. An x86 processor without the instructions emulates
// them, several times slower than float32; those of others are torch's to know.
inline bool has_bfloat16_products() {
#if defined(SBRRT_X86)
  return cpu_isa(Isa::avx512_bf16) == Isa::avx512_bf16;
#else
  return true;
#endif
}

// Room for one float32 matrix, which grows when it must.
class WideMatrix {
 public:
  // Uninitialised, of the shape of `matrix` and transposed in memory where that is. Valid until
  // the next call.
  at::Tensor like(const at::Tensor& matrix) {
    if (!memory_ || matrix.numel() > capacity_) {
      capacity_ = matrix.numel();
      memory_.emplace(capacity_);
    }
    const int64_t rows = matrix.size(0), columns = matrix.size(1);
    const bool is_transposed = matrix.stride(0) == 1 && matrix.stride(1) != 1;
    return at::from_blob(memory_->get(), {rows, columns},
                         is_transposed ? at::IntArrayRef{1, rows} : at::IntArrayRef{columns, 1},
                         at::TensorOptions(at::kFloat));
  }

  // `matrix` in float32, until the next call.
  at::Tensor copy_of(const at::Tensor& matrix) { return like(matrix).copy_(matrix); }

 private:
  int64_t capacity_ = 0;
  std::optional<AlignedArray<float>> memory_;
};

}  // namespace sbrrt
