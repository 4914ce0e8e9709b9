// Checks and result shapes of adamw_ema_ and gradient_norm, for tracing; no memory is read.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/adamw_checks.h"

namespace sbrrt::meta_adamw {
namespace {

void adamw_ema_meta(at::TensorList params, at::TensorList grads, at::TensorList exp_avg,
                    at::TensorList exp_avg_sq, at::TensorList ema, at::TensorList low_precision,
                    at::TensorList ema_low_precision, const at::Tensor& learning_rate,
                    at::ArrayRef<double> weight_decay, double beta1, double beta2, double eps,
                    const at::Tensor& clip_factor, const at::Tensor& step, double ema_beta) {
  const AdamwLists lists{"adamw_ema_", params, grads, exp_avg, exp_avg_sq, ema, low_precision,
                         ema_low_precision, at::kMeta};
  check_adamw_lists(lists);
  check_adamw_numbers(lists, learning_rate, weight_decay, beta1, beta2, eps, clip_factor, step,
                      ema_beta);
  adamw_write_set(lists, {learning_rate, clip_factor, step}).count_change();
}

void adamw_ema_rows_meta(const at::Tensor& param, const at::Tensor& grad, const at::Tensor& rows,
                         const at::Tensor& touched, const at::Tensor& exp_avg,
                         const at::Tensor& exp_avg_sq, const at::Tensor& ema,
                         const at::Tensor& learning_rate, double weight_decay, double beta1,
                         double beta2, double eps, const at::Tensor& clip_factor,
                         const at::Tensor& step, double ema_beta) {
  const AdamwLists lists{"adamw_ema_rows_", param, param, exp_avg, exp_avg_sq, ema, {}, {},
                         at::kMeta};
  check_adamw_rows(lists, grad, rows, touched);
  check_adamw_numbers(lists, learning_rate, weight_decay, beta1, beta2, eps, clip_factor, step,
                      ema_beta);
  adamw_rows_write_set(lists, {learning_rate, clip_factor, step}, grad, rows, touched)
      .count_change();
}

at::Tensor gradient_norm_meta(at::TensorList grads) {
  check_gradients(grads, at::kMeta);
  return at::empty({}, at::dtype(at::kFloat).device(at::kMeta));
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, Meta, m) {
  m.impl("adamw_ema_", &adamw_ema_meta);
  m.impl("adamw_ema_rows_", &adamw_ema_rows_meta);
  m.impl("gradient_norm", &gradient_norm_meta);
}

}  // namespace sbrrt::meta_adamw
