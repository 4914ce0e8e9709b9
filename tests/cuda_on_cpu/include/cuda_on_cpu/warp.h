// Operations in which the lanes of a warp meet: shuffles, votes, __syncwarp. Every lane named in the
// mask must come, from the same place and with the same mask.
#pragma once

namespace cuda_on_cpu {

constexpr unsigned kAllLanes = 0xffffffffu;

enum class Shuffle { index, up, down, exclusive_or };
uint64_t shuffle(Shuffle how, unsigned mask, uint64_t value, int operand, int width, Site site);
unsigned ballot(unsigned mask, bool predicate, Site site);
void syncwarp(unsigned mask, Site site);

// The word that passes through a shuffle.
template <typename T>
inline T shuffled(Shuffle how, unsigned mask, T value, int operand, int width, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  word = shuffle(how, mask, word, operand, width, site);
  __builtin_memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffled(cuda_on_cpu::Shuffle::index, mask, value, lane, width, site);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffled(cuda_on_cpu::Shuffle::up, mask, value, delta, width, site);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffled(cuda_on_cpu::Shuffle::down, mask, value, delta, width, site);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                         cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffled(cuda_on_cpu::Shuffle::exclusive_or, mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::ballot(mask, predicate != 0, site) == mask;
}
inline void __syncwarp(unsigned mask = cuda_on_cpu::kAllLanes,
                       cuda_on_cpu::Site site = CUDA_ON_CPU_HERE) {
  cuda_on_cpu::syncwarp(mask, site);
}
