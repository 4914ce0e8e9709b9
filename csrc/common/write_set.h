// What an op writes into memory of the caller's, and what it reads meanwhile.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "common/memory.h"

namespace sbrrt {

// A tensor argument by name, or an entry of a list of tensors. It must outlive this.
struct Argument {
  const char* name;
  const at::Tensor* tensor;
  int64_t index;  // in the list, or -1

  Argument(const char* name_, const at::Tensor& tensor_, int64_t index_ = -1)
      : name(name_), tensor(&tensor_), index(index_) {}
  std::string described() const {
    return index < 0 ? std::string(name) : c10::str(name, "[", index, "]");
  }
};

using Arguments = c10::SmallVector<Argument, 16>;

inline void append(Arguments& arguments, const char* name, at::TensorList tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    arguments.emplace_back(name, tensors[i], static_cast<int64_t>(i));
  }
}

inline void append(Arguments& arguments, const char* name,
                   const std::optional<at::Tensor>& tensor) {
  if (tensor) arguments.emplace_back(name, *tensor);
}

inline void append(Arguments& arguments, std::initializer_list<Argument> others) {
  for (const Argument& other : others) arguments.push_back(other);
}

// A result that may also be exactly an input: an element is read before it is written.
using InPlace = std::pair<const char*, const char*>;

// The tensors that an op writes; `count_change` once they are written. Their dtypes, shapes and
// strides are checked before. The constructor raises where a result shares memory with another
// result or with an input, is on another device, or where autograd cannot take the change.
class WriteSet {
 public:
  WriteSet(const char* op, Arguments written, const Arguments& read,
           std::initializer_list<InPlace> in_place = {})
      : op_(op), written_(std::move(written)) {
    if (written_.empty()) return;
    for (const Argument& argument : written_) check_written(argument);
    if (c10::GradMode::is_enabled()) check_no_graph(read);
    check_memory(read, in_place);
  }

  // Tells autograd, so that a graph that saved one of them raises.
  void count_change() const {
    for (const Argument& argument : written_) {
      argument.tensor->unsafeGetTensorImpl()->bump_version();
    }
  }

 private:
  static constexpr size_t kMany = 32;

  void check_written(const Argument& argument) const {
    const at::Tensor &tensor = *argument.tensor, &first = *written_[0].tensor;
    const bool is_there = tensor.device() == first.device() || tensor.sym_numel() == 0;
    TORCH_CHECK_VALUE(is_there, "sbrrt::", op_, ": ",
                      written_[0].described(), " and ", argument.described(), " are on ",
                      first.device(), " and ", tensor.device(), "; they must share a device");
    TORCH_CHECK_VALUE(!tensor.is_inference() || c10::InferenceMode::is_enabled(), "sbrrt::", op_,
                      ": ", argument.described(), " was made under torch.inference_mode() and can "
                      "be written there alone; pass a clone of it");
  }

  void check_no_graph(const Arguments& read) const {
    for (const Argument& argument : written_) {
      TORCH_CHECK_VALUE(!argument.tensor->requires_grad(), "sbrrt::", op_, ": ",
                        argument.described(), " is written but requires grad, which autograd "
                        "cannot follow; call this under torch.no_grad() or detach it");
    }
    for (const Argument& argument : read) {
      TORCH_CHECK_VALUE(!argument.tensor->requires_grad(), "sbrrt::", op_, ": ",
                        argument.described(), " requires grad, but what is written into ",
                        written_[0].described(), " has no gradient; call this under "
                        "torch.no_grad() or detach it");
    }
  }

  void check_memory(const Arguments& read, std::initializer_list<InPlace> in_place) const {
    const size_t num_written = written_.size();
    const auto argument = [&](size_t i) -> const Argument& {
      return i < num_written ? written_[i] : read[i - num_written];
    };
    c10::SmallVector<Extent, kMany> extents(num_written + read.size());
    for (size_t i = 0; i < extents.size(); ++i) extents[i] = extent_of(*argument(i).tensor);
    if (extents.size() > kMany && !any_written_meets(extents, num_written)) return;
    for (size_t i = 0; i < num_written; ++i) {
      for (size_t j = i + 1; j < extents.size(); ++j) {
        if (!extents[i].meets(extents[j])) continue;
        const at::Tensor &a = *argument(i).tensor, &b = *argument(j).tensor;
        if (!have_common_memory(runs_of(a, extents[i].begin), runs_of(b, extents[j].begin))) {
          continue;
        }
        const bool may_be_same = is_listed(in_place, argument(i).name, argument(j).name);
        if (may_be_same && is_same_memory(a, b)) continue;
        complain(argument(i), argument(j), j < num_written, may_be_same);
      }
    }
  }

  static bool is_listed(std::initializer_list<InPlace> in_place, const char* result,
                        const char* input) {
    for (const auto& [to, from] : in_place) {
      if (std::strcmp(to, result) == 0 && std::strcmp(from, input) == 0) return true;
    }
    return false;
  }

  [[noreturn]] void complain(const Argument& result, const Argument& other, bool is_written,
                             bool may_be_same) const {
    const std::string to = result.described(), from = other.described();
    TORCH_CHECK_VALUE(!is_written, "sbrrt::", op_, ": ", to, " and ", from,
                      " share memory, and both are written; give each of them memory of its own");
    TORCH_CHECK_VALUE(!may_be_same, "sbrrt::", op_, ": ", to, " overlaps ", from,
                      ", which is read meanwhile; give ", to, " memory of its own, or exactly that "
                      "of ", from, " with the same dtype and strides");
    TORCH_CHECK_VALUE(false, "sbrrt::", op_, ": ", to, " shares memory with ", from,
                      ", which is read meanwhile; give ", to, " memory of its own");
  }

  const char* op_;
  Arguments written_;
};

}  // namespace sbrrt
