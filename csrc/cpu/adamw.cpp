// adamw_ema_ and gradient_norm on the CPU: one pass over all tensors, in pieces of fixed size.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "common/adamw_op.h"

namespace sbrrt {
namespace {

struct AdamwTensor {
  float *param, *exp_avg, *exp_avg_sq;
  float* ema;                                        // or null
  at::BFloat16 *low_precision, *ema_low_precision;   // or null
  float kept;        // 1 - learning rate * weight decay
  float step_size;   // learning rate / (1 - beta1^step)
  float root_scale;  // 1 / sqrt(1 - beta2^step)
};

struct AdamwNumbers {
  float clip_factor;
  float new_mean;                // 1 - beta1
  float new_square, old_square;  // 1 - beta2, beta2
  float eps;
  float ema_new, ema_old;        // 1 - ema_beta, ema_beta
};

// The rows of a table that have a gradient.
struct AdamwRows {
  const int64_t* rows;  // [count], ascending
  int64_t count, width;
  const float* grad;  // [count, width]
  bool* touched;      // [number of rows of the table]: whether a row's moments are not all zero
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/adamw_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

// Elements begin ... end - 1 of one tensor. Pieces depend on the sizes alone, never on threads.
struct Piece {
  size_t tensor;
  int64_t begin, end;
};

constexpr int64_t kPieceSize = 16384;

std::vector<Piece> pieces_of(at::TensorList tensors) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t size = tensors[i].numel();
    for (int64_t begin = 0; begin < size; begin += kPieceSize) {
      pieces.push_back({i, begin, std::min(begin + kPieceSize, size)});
    }
  }
  return pieces;
}

template <typename Grad>
void adamw_piece(const AdamwTensor& t, const AdamwNumbers& n, const Grad* grad, int64_t begin,
                 int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(adamw_piece, t, n, grad, begin, end)
}

void adamw_average_piece(const AdamwTensor& t, const AdamwNumbers& n, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(adamw_average_piece, t, n, begin, end)
}

void adamw_row_idle(const AdamwTensor& t, const AdamwNumbers& n, bool touched, int64_t begin,
                    int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(adamw_row_idle, t, n, touched, begin, end)
}

template <typename T>
double gradient_sum(const T* p, int64_t count) {
  SBRRT_RETURN_ON_THIS_CPU(gradient_sum, p, count)
}

std::vector<at::Tensor> dense(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

void check_ascending(const at::Tensor& rows, int64_t num_rows) {
  const at::Tensor dense = rows.contiguous();
  const int64_t* data = dense.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    TORCH_CHECK_VALUE(data[i] >= 0 && data[i] < num_rows && (i == 0 || data[i] > data[i - 1]),
                      "sbrrt::adamw_ema_rows_: rows must ascend within the table's ", num_rows,
                      " rows, got rows[", i, "] = ", data[i]);
  }
}

double number(const at::Tensor& tensor, int64_t index) {
  const int64_t i = tensor.dim() == 0 ? 0 : index * tensor.stride(0);
  switch (tensor.scalar_type()) {
    case at::kLong: return static_cast<double>(tensor.const_data_ptr<int64_t>()[i]);
    case at::kDouble: return tensor.const_data_ptr<double>()[i];
    default: return tensor.const_data_ptr<float>()[i];
  }
}

template <typename T>
T* item(at::TensorList tensors, size_t index) {
  if (tensors.empty() || tensors[index].numel() == 0) return nullptr;
  return tensors[index].mutable_data_ptr<T>();
}

// Without a gradient no number of the parameter's own is looked at.
AdamwTensor tensor_of(const char* op, const AdamwLists& lists, const AdamwSettings& s,
                      size_t index) {
  const auto place = static_cast<int64_t>(index);
  const bool is_updated = lists.grads[index].numel() > 0;
  const double rate = is_updated ? number(s.learning_rate, place) : 0;
  const double step = is_updated ? number(s.step, place) : 1;
  TORCH_CHECK_VALUE(step >= 1, "sbrrt::", op, ": step counts from 1, got ", step);
  TORCH_CHECK_VALUE(rate >= 0, "sbrrt::", op, ": learning_rate must be >= 0, got ", rate);
  return {item<float>(lists.params, index),
          item<float>(lists.exp_avg, index),
          item<float>(lists.exp_avg_sq, index),
          item<float>(lists.ema, index),
          item<at::BFloat16>(lists.low_precision, index),
          item<at::BFloat16>(lists.ema_low_precision, index),
          static_cast<float>(1 - rate * s.weight_decay[index]),
          static_cast<float>(rate / (1 - std::pow(s.beta1, step))),
          static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, step)))};
}

std::vector<AdamwTensor> tensors_of(const char* op, const AdamwLists& lists,
                                    const AdamwSettings& s) {
  std::vector<AdamwTensor> tensors;
  for (size_t i = 0; i < lists.params.size(); ++i) {
    tensors.push_back(tensor_of(op, lists, s, i));
  }
  return tensors;
}

AdamwNumbers numbers_of(const AdamwSettings& s) {
  return {static_cast<float>(number(s.clip_factor, 0)),
          static_cast<float>(1 - s.beta1),
          static_cast<float>(1 - s.beta2),
          static_cast<float>(s.beta2),
          static_cast<float>(s.eps),
          static_cast<float>(1 - s.ema_beta),
          static_cast<float>(s.ema_beta)};
}

// Table rows first ... last - 1, of which some have a gradient.
void update_rows(const AdamwTensor& t, const AdamwNumbers& n, const AdamwRows& r, int64_t first,
                 int64_t last) {
  const int64_t* next = std::lower_bound(r.rows, r.rows + r.count, first);
  for (int64_t row = first; row < last; ++row) {
    const int64_t begin = row * r.width, end = begin + r.width;
    if (next != r.rows + r.count && *next == row) {
      const float* grad = r.grad + (next - r.rows) * r.width;
      adamw_piece(t, n, grad - begin, begin, end);
      r.touched[row] = true;
      ++next;
    } else {
      adamw_row_idle(t, n, r.touched[row], begin, end);
    }
  }
}

// run(a pointer to the tensor's elements), which are float32 or bfloat16.
template <typename F>
auto with_data(const at::Tensor& tensor, F run) {
  return tensor.scalar_type() == at::kFloat ? run(tensor.const_data_ptr<float>())
                                            : run(tensor.const_data_ptr<at::BFloat16>());
}

// Without a gradient there is only the average to move.
void update_piece(const Piece& piece, const AdamwTensor& tensor, const at::Tensor& grad,
                  const AdamwNumbers& numbers) {
  if (grad.numel() > 0) {
    with_data(grad, [&](const auto* data) {
      adamw_piece(tensor, numbers, data, piece.begin, piece.end);
    });
  } else if (tensor.ema) {
    adamw_average_piece(tensor, numbers, piece.begin, piece.end);
  }
}

void update(const std::vector<Piece>& pieces, const std::vector<AdamwTensor>& tensors,
            const std::vector<at::Tensor>& grads, const AdamwNumbers& numbers) {
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      update_piece(pieces[i], tensors[pieces[i].tensor], grads[pieces[i].tensor], numbers);
    }
  });
}

double sum_of_all(const std::vector<at::Tensor>& tensors, const std::vector<Piece>& pieces) {
  std::vector<double> sums(pieces.size());
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      sums[i] = with_data(tensors[piece.tensor], [&](const auto* data) {
        return gradient_sum(data + piece.begin, piece.end - piece.begin);
      });
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

void AdamwEma::run_cpu() const {
  const AdamwNumbers numbers = numbers_of(settings);
  if (std::isnan(numbers.clip_factor)) return;  // the update is left out, and is not counted
  update(pieces_of(lists.params), tensors_of(kOp, lists, settings), dense(lists.grads), numbers);
}

void AdamwEmaRows::run_cpu() const {
  check_ascending(rows, param.size(0));
  const AdamwNumbers numbers = numbers_of(settings);
  if (std::isnan(numbers.clip_factor)) return;
  const AdamwTensor tensor = tensor_of(kOp, lists(), settings, 0);
  const at::Tensor dense_grad = grad.contiguous(), dense_rows = rows.contiguous();
  const AdamwRows view{dense_rows.const_data_ptr<int64_t>(), rows.size(0), param.size(1),
                       dense_grad.const_data_ptr<float>(), touched.mutable_data_ptr<bool>()};
  const int64_t grain = std::max<int64_t>(1, kPieceSize / std::max<int64_t>(1, param.size(1)));
  at::parallel_for(0, param.size(0), grain, [&](int64_t begin, int64_t end) {
    update_rows(tensor, numbers, view, begin, end);
  });
}

void GradientNorm::run_cpu() const {
  const auto norm = static_cast<float>(std::sqrt(sum_of_all(dense(grads), pieces_of(grads))));
  float* results = out.mutable_data_ptr<float>();
  results[0] = norm;
  results[1] = clip_factor_of(norm, max_norm);
  results[2] = std::isfinite(norm) ? 1.0f : 0.0f;
}

}  // namespace sbrrt
