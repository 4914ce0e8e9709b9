// What the bindings of the CUDA ops share: from tensors to Params, and the launch. Nothing here
// waits for the device, so the values of index and rng tensors are not checked.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <initializer_list>
#include <optional>

#include "common/checks.h"
#include "common/dense_rows.h"
#include "common/dropout.h"
#include "common/op.h"
#include "cuda/column_sums.h"
#include "cuda/common/launch_setting.h"
#include "cuda/common/params.h"

namespace sbrrt::cuda {

// The dtype is checked.
inline ElementType element_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return ElementType::kFloat;
    case at::kHalf: return ElementType::kHalf;
    default: return ElementType::kBFloat16;
  }
}

// Runs launchers on the current stream of the device that all tensors are on.
class Launch {
 public:
  Launch(const char* op, const at::Tensor& first, std::initializer_list<at::Tensor> others)
      : op_(op), guard_(first.device()), stream_(c10::cuda::getCurrentCUDAStream()) {
    TORCH_CHECK_VALUE(programmatic_launch() >= 0, "SBRRT_PROGRAMMATIC_LAUNCH must be 0 or 1");
    for (const at::Tensor& other : others) {
      TORCH_CHECK_VALUE(other.device() == first.device(), "sbrrt::", op, ": tensors are on ",
                        first.device(), " and ", other.device(), "; they must share a GPU");
    }
  }

  template <typename Params>
  void operator()(cudaError_t (*launcher)(const Params&, cudaStream_t), const Params& params) const {
    const cudaError_t error = launcher(params, stream_);
    TORCH_CHECK(error == cudaSuccess, "sbrrt::", op_, ": the kernel could not be launched: ",
                cudaGetErrorString(error));
  }

 private:
  const char* op_;
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

// The tensor has dense rows and outlives the view.
inline ConstRows const_rows(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0)};
}

inline Rows rows(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0)};
}

inline Rows optional_rows(const std::optional<at::Tensor>& tensor) {
  return tensor ? rows(*tensor) : Rows{nullptr, 0};
}

// A parameter or statistics as dense float32.
inline at::Tensor floats(const at::Tensor& vector) {
  return vector.to(at::kFloat).contiguous();
}

inline at::Tensor empty_floats(at::IntArrayRef sizes, const at::Tensor& like) {
  return like.new_empty(sizes, like.options().dtype(at::kFloat));
}

// rng is contiguous and outlives the result.
inline DropoutParams dropout_params(double p, const at::Tensor& rng, int64_t site) {
  return {rng.const_data_ptr<int64_t>(), site, dropout_threshold(p),
          static_cast<float>(dropout_scale(p))};
}

// rng and offsets are contiguous forms of the arguments' and outlive the result.
inline RowDropoutParams dropout_params(const DropoutArguments& dropout, const at::Tensor& rng,
                                       const at::Tensor& offsets) {
  return {dropout_params(dropout.p, rng, dropout.site), offsets.const_data_ptr<int64_t>()};
}

// The sums over the blocks of partial [num_blocks, gradients * width], into the gradients that are
// wanted, [width] each; the others are null.
inline void write_sums(const Launch& launch, const at::Tensor& partial,
                       std::initializer_list<const at::Tensor*> gradients) {
  const int num_parts = static_cast<int>(gradients.size());
  const int64_t width = partial.size(1) / num_parts;
  ColumnSumsParams params{ElementType::kFloat, num_parts, partial.size(0), width,
                          {partial.const_data_ptr(), partial.stride(0)}, width};
  at::Tensor memory[kMaxColumnSums];
  const at::Tensor* const* gradient = gradients.begin();
  for (int i = 0; i < num_parts; ++i) {
    if (gradient[i] == nullptr) continue;
    const bool is_float = gradient[i]->scalar_type() == at::kFloat;
    memory[i] = is_float ? *gradient[i] : empty_floats({params.width}, partial);
    params.out[i] = memory[i].mutable_data_ptr<float>();
  }
  launch(&column_sums, params);
  for (int i = 0; i < num_parts; ++i) {
    if (memory[i].defined() && !memory[i].is_same(*gradient[i])) gradient[i]->copy_(memory[i]);
  }
}

}  // namespace sbrrt::cuda
