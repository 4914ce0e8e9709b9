// smart_ascend on the CPU: groups of tokens are independent, each is done by one thread.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "common/dense_rows.h"
#include "common/smart_ascend_op.h"

namespace sbrrt {
namespace {

template <typename D, typename G>
struct AscendRows {
  const D* delta;
  const G* gradient;
  D* out;  // dense
  int64_t delta_stride, gradient_stride, width;
};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/smart_ascend_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainElements = 16384;

template <typename D, typename G>
void ascend_group(const AscendOptions& options, const AscendRows<D, G>& rows,
                  const int64_t* tokens, int64_t num_tokens) {
  SBRRT_RETURN_ON_THIS_CPU(ascend_group, options, rows, tokens, num_tokens)
}

// The kept tokens, those of one group side by side: group i has tokens starts[i] ... starts[i + 1] - 1.
struct Groups {
  std::vector<int64_t> tokens, starts;
};

Groups groups_of(const bool* mask, const int64_t* sequence, int64_t num_tokens, bool is_sequence) {
  Groups groups;
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (mask[i]) groups.tokens.push_back(i);
  }
  if (is_sequence) {
    const auto before = [&](int64_t a, int64_t b) { return sequence[a] < sequence[b]; };
    if (!std::is_sorted(groups.tokens.begin(), groups.tokens.end(), before)) {
      std::stable_sort(groups.tokens.begin(), groups.tokens.end(), before);
    }
  }
  for (size_t i = 0; i < groups.tokens.size(); ++i) {
    const bool is_same = is_sequence && i > 0 &&
                         sequence[groups.tokens[i]] == sequence[groups.tokens[i - 1]];
    if (!is_same) groups.starts.push_back(static_cast<int64_t>(i));
  }
  groups.starts.push_back(static_cast<int64_t>(groups.tokens.size()));
  return groups;
}

void check_sequences(const int64_t* sequence, int64_t num_tokens, int64_t num_sequences) {
  for (int64_t i = 0; i < num_tokens; ++i) {
    TORCH_CHECK_VALUE(sequence[i] >= 0 && sequence[i] < num_sequences,
                      "sbrrt::smart_ascend: sequence must be in [0, num_sequences = ",
                      num_sequences, "), got ", sequence[i], " for token ", i);
  }
}

// Tokens that may not be perturbed.
void clear_others(const bool* mask, const at::Tensor& out) {
  const int64_t num_bytes = out.size(1) * out.element_size();
  auto* data = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < out.size(0); ++i) {
    if (!mask[i]) std::fill_n(data + i * num_bytes, num_bytes, 0);
  }
}

template <typename D, typename G>
void ascend(const AscendOptions& options, const at::Tensor& delta, const at::Tensor& gradient,
            const Groups& groups, const at::Tensor& out) {
  const AscendRows<D, G> rows{delta.const_data_ptr<D>(), gradient.const_data_ptr<G>(),
                              out.mutable_data_ptr<D>(), delta.stride(0),
                              gradient.stride(0),        delta.size(1)};
  const auto num_groups = static_cast<int64_t>(groups.starts.size()) - 1;
  const auto num_elements = static_cast<int64_t>(groups.tokens.size()) * rows.width;
  const int64_t grain = std::max<int64_t>(1, num_groups * kGrainElements / (num_elements + 1));
  at::parallel_for(0, num_groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = groups.starts[i];
      ascend_group(options, rows, groups.tokens.data() + start, groups.starts[i + 1] - start);
    }
  });
}

}  // namespace

void SmartAscend::run_cpu() const {
  const at::Tensor kept = mask.contiguous(), owner = sequence.contiguous();
  check_sequences(owner.const_data_ptr<int64_t>(), owner.size(0),
                  num_sequences.guard_int(__FILE__, __LINE__));
  if (out.numel() == 0) return;
  const AscendOptions how = options();
  const Groups groups = groups_of(kept.const_data_ptr<bool>(), owner.const_data_ptr<int64_t>(),
                                  owner.size(0), how.is_sequence);
  clear_others(kept.const_data_ptr<bool>(), out);
  const at::Tensor from = with_dense_rows(delta), along = with_dense_rows(gradient);
  const bool is_float = delta.scalar_type() == at::kFloat;
  if (gradient.scalar_type() == at::kFloat) {
    (is_float ? ascend<float, float> : ascend<at::BFloat16, float>)(how, from, along, groups, out);
  } else {
    (is_float ? ascend<float, at::BFloat16> : ascend<at::BFloat16, at::BFloat16>)(
        how, from, along, groups, out);
  }
}

}  // namespace sbrrt
