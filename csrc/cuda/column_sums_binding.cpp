// column_sums_into on CUDA: from tensors to the launcher of column_sums.h.
#include "common/column_sums_op.h"
#include "cuda/binding.h"

namespace sbrrt {

using namespace cuda;

void ColumnSums::run_cuda() const {
  const Launch launch(kOp, x, {out, weights ? *weights : x});
  TORCH_CHECK_VALUE(x.size(0) <= 65535, "sbrrt::", kOp, ": x may have at most 65535 layers on CUDA, "
                    "got ", x.size(0));
  const at::Tensor dense = with_dense_layers(x);
  const at::Tensor dense_weights = weights ? weights->contiguous() : at::Tensor();
  launch(&column_sums,
         ColumnSumsParams{element_type(x), x.size(0), x.size(1), x.size(2),
                          {dense.const_data_ptr(), dense.stride(1)}, dense.stride(0),
                          weights ? dense_weights.const_data_ptr<float>() : nullptr,
                          weights ? dense_weights.size(0) : 0,
                          {out.mutable_data_ptr<float>()}, x.size(0) > 1 ? out.stride(0) : 0});
}

}  // namespace sbrrt
