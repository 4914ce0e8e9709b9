// SBRRT_PROGRAMMATIC_LAUNCH=0 starts every kernel when the one before it has ended; 1 is the default.
#pragma once

#include <cstdlib>
#include <cstring>

namespace sbrrt::cuda {

// 0 or 1, and -1 where the variable is neither. The environment is read once.
inline int programmatic_launch() {
  static const int setting = [] {
    const char* variable = std::getenv("SBRRT_PROGRAMMATIC_LAUNCH");
    if (variable == nullptr || *variable == '\0' || std::strcmp(variable, "1") == 0) return 1;
    return std::strcmp(variable, "0") == 0 ? 0 : -1;
  }();
  return setting;
}

}  // namespace sbrrt::cuda
