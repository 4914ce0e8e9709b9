// Whether backward passes leave out the gradients of weights; see ops/autodiff.py.
#pragma once

#include <atomic>

namespace sbrrt {

// Of the whole process: the backward passes of other devices run on threads of their own.
inline std::atomic<bool> input_gradients_only{false};

}  // namespace sbrrt
