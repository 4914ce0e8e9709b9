// cp.async: a copy lands when its thread waits for its group, and never before.
#include "state.h"

namespace cuda_on_cpu {

void cp_async(void* shared, const void* global, bool valid) {
  check_aligned(shared, 16);
  if (valid) check_aligned(global, 16);
  current->copies.push_back({shared, global, valid, kUncommitted});
  copy_starts(current->copies.back());
}

void cp_async_commit() {
  for (Copy& copy : current->copies) {
    if (copy.group == kUncommitted) copy.group = current->num_groups;
  }
  ++current->num_groups;
}

void cp_async_wait(int num_under_way) {
  std::vector<Copy> later;
  for (const Copy& copy : current->copies) {
    if (copy.group != kUncommitted && copy.group < current->num_groups - num_under_way) {
      copy_lands(copy);
    } else {
      later.push_back(copy);
    }
  }
  current->copies = later;
}

}  // namespace cuda_on_cpu
