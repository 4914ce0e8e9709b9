// What the parts of the machine share. One launch runs at a time, on one host thread.
#pragma once

#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cuda_on_cpu/cp_async.h>
#include <cuda_on_cpu/launch.h>
#include <cuda_on_cpu/memory.h>
#include <cuda_on_cpu/mma.h>
#include <cuda_on_cpu/previous_kernel.h>
#include <cuda_on_cpu/shared.h>

#include <setjmp.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cuda_on_cpu {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxShared = 99 << 10;  // of sm_86 and sm_89, the least of the chips compiled for

// A cp.async under way.
struct Copy {
  void* shared;
  const void* global;
  bool valid;
  int group;  // of the commit; kUncommitted before it
};
constexpr int kUncommitted = -1;

struct Thread {
  jmp_buf context;
  bool started = false;  // its fiber exists
  bool done = false;
  bool may_start = false;  // it has waited for the kernel before
  int number = 0;  // in the block, x fastest
  uint3 index{};
  const char* waits_for = nullptr;
  Site site{};
  unsigned warp_epoch = 0;  // how many full __syncwarp it has passed
  std::vector<Copy> copies;
  int num_groups = 0;  // commits so far

  int warp() const { return number / kWarp; }
  int lane() const { return number % kWarp; }
};

struct Block {
  dim3 grid, shape;
  uint3 index{};
  int num_threads = 0, num_done = 0, num_at_barrier = 0;
  unsigned epoch = 0;  // how many barriers it has passed
  Thread* first_at_barrier = nullptr;
};

extern Thread threads[kMaxThreads];
extern Thread* current;  // null on the host
extern Block block;
extern bool checked;  // the kernels report their accesses to memory.cpp

// machine.cpp
void wait_for(const char* what, Site site);  // until resume() is called on it
void resume(Thread& thread);
bool on_own_stack(const void* address);
std::string place(const Thread& thread);
std::string place(Site site);
bool same(Site a, Site b);

// warp.cpp
void reset_warps();

// memory.cpp
enum class Access { read, write };
void reset_shared(size_t dynamic_bytes);
void check_access(const void* address, size_t bytes, Access access);
std::string broken_red_zone();  // empty if all are whole
void reset_launch();
void check_aligned(const void* address, int bytes);
void copy_starts(const Copy& copy);
void copy_lands(const Copy& copy);

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace cuda_on_cpu
