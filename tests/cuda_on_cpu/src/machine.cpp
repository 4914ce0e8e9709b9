// Fibers, their seeded order, barriers, and the grid.
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

Thread threads[kMaxThreads];
Thread* current = nullptr;
Block block;
bool checked = false;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kGuardBytes = 4 << 10;

char* stacks = nullptr;
jmp_buf host_context;
std::vector<Thread*> ready;
std::mt19937_64 order;
uint64_t seed = 0;  // 0: threads and blocks in their order
void (*body)(void*) = nullptr;
void* body_context = nullptr;
std::string error;
Kernel* running = nullptr;
Kernel* kernels = nullptr;  // all that the program launches anywhere
cudaError_t last_error = cudaSuccess;

char* stack_of(const Thread& thread) {
  return stacks + (&thread - threads) * kStackBytes;
}

void make_stacks() {
  if (stacks) return;
  void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  stacks = static_cast<char*>(memory);
  for (Thread& thread : threads) mprotect(stack_of(thread), kGuardBytes, PROT_NONE);
}

// Tells the address sanitizer which stack comes next; null is the host's.
void announce(const Thread* next) {
#if defined(__SANITIZE_ADDRESS__)
  static const void* host_bottom;
  static size_t host_bytes;
  if (!current) {
    void* self = nullptr;
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &self, &host_bytes);
    pthread_attr_destroy(&attributes);
    host_bottom = self;
  }
  void* fake = nullptr;
  if (next) {
    __sanitizer_start_switch_fiber(&fake, stack_of(*next), kStackBytes);
  } else {
    __sanitizer_start_switch_fiber(&fake, host_bottom, host_bytes);
  }
#else
  static_cast<void>(next);
#endif
}

void arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void thread_ends();

void fiber_main() {
  arrived();
  for (;;) {
    body(body_context);
    thread_ends();
  }
}

[[noreturn]] void start(Thread& thread) {
  thread.started = true;
  static ucontext_t fiber;  // not on a stack that nobody returns to
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack_of(thread) + kGuardBytes;
  fiber.uc_stack.ss_size = kStackBytes - kGuardBytes;
  fiber.uc_link = nullptr;
  makecontext(&fiber, fiber_main, 0);
  setcontext(&fiber);
  abort();
}

[[noreturn]] void jump(Thread* next) {
  announce(next);
  current = next;
  if (!next) _longjmp(host_context, 1);
  if (!next->started) start(*next);
  _longjmp(next->context, 1);
}

// The thread that goes on, drawn among those that can; null when all have ended.
Thread* draw() {
  if (ready.empty()) return nullptr;
  size_t at = 0;
  if (seed == 0) {
    at = std::min_element(ready.begin(), ready.end()) - ready.begin();
  } else {
    at = order() % ready.size();
  }
  Thread* next = ready[at];
  ready[at] = ready.back();
  ready.pop_back();
  return next;
}

std::string who_waits() {
  std::string list;
  int num_told = 0;
  for (int i = 0; i < block.num_threads; ++i) {
    const Thread& thread = threads[i];
    if (thread.done || !thread.waits_for || ++num_told > 4) continue;
    list += text("; %s waits for %s at %s", place(thread).c_str(), thread.waits_for,
                 place(thread.site).c_str());
  }
  return list;
}

__attribute__((noinline)) void run_next() {
  Thread* next = draw();
  if (!next && block.num_done < block.num_threads) {
    fail("no thread can go on" + who_waits());
  }
  if (next == current) return;
  if (_setjmp(current->context) == 0) jump(next);
  arrived();
  current->waits_for = nullptr;
}

void thread_ends() {
  if (!current->may_start) fail("ended without await_previous_kernel()");
  current->done = true;
  ++block.num_done;
  if (block.num_at_barrier > 0) {
    fail(text("ended without the barrier at %s, where %s waits",
              place(block.first_at_barrier->site).c_str(), place(*block.first_at_barrier).c_str()));
  }
  run_next();
}

uint3 position(size_t number, dim3 shape) {
  return {static_cast<unsigned>(number % shape.x), static_cast<unsigned>(number / shape.x % shape.y),
          static_cast<unsigned>(number / shape.x / shape.y)};
}

void prepare_block(uint3 index, size_t shared_bytes) {
  block.index = index;
  block.num_done = block.num_at_barrier = 0;
  block.epoch = 0;
  ready.clear();
  for (int i = 0; i < block.num_threads; ++i) {
    Thread& thread = threads[i];
    thread.done = thread.may_start = false;
    thread.number = i;
    thread.index = position(i, block.shape);
    thread.waits_for = nullptr;
    thread.warp_epoch = 0;
    thread.copies.clear();
    thread.num_groups = 0;
    ready.push_back(&thread);
  }
  reset_warps();
  reset_shared(shared_bytes);
}

__attribute__((noinline)) void run_block() {
  if (_setjmp(host_context) == 0) jump(draw());
  arrived();
}

void run_blocks(size_t num_blocks, size_t shared_bytes) {
  std::vector<size_t> blocks(num_blocks);
  std::iota(blocks.begin(), blocks.end(), size_t{0});
  if (seed != 0) std::shuffle(blocks.begin(), blocks.end(), order);
  for (size_t i = 0; i < num_blocks && error.empty(); ++i) {
    prepare_block(position(blocks[i], block.grid), shared_bytes);
    run_block();
  }
}

std::string refusal(dim3 grid, dim3 shape, size_t shared_bytes) {
  const uint64_t num_threads = uint64_t{shape.x} * shape.y * shape.z;
  if (num_threads == 0 || num_threads > kMaxThreads || shape.z > 64) {
    return text("a block of %u x %u x %u threads; at most 1024", shape.x, shape.y, shape.z);
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return text("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  }
  if (shared_bytes > kMaxShared) {
    return text("%zu bytes of shared memory; at most %zu", shared_bytes, kMaxShared);
  }
  return "";
}

}  // namespace

std::string text(const char* format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  return line;
}

std::string place(const Thread& thread) {
  return text("thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
}

std::string place(Site site) { return text("%s:%d", site.file, site.line); }

bool same(Site a, Site b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

bool on_own_stack(const void* address) {
  const char* bottom = stack_of(*current) + kGuardBytes;
  const char* at = static_cast<const char*>(address);
  return at >= bottom && at < bottom + kStackBytes - kGuardBytes;
}

void await_previous_kernel() { current->may_start = true; }

uint3 thread_index() { return current->index; }
uint3 block_index() { return block.index; }
dim3 block_dim() { return block.shape; }
dim3 grid_dim() { return block.grid; }

void fail(const std::string& message) {
  error = text("%s, block (%u, %u, %u), %s: %s", running->name, block.index.x, block.index.y,
               block.index.z, place(*current).c_str(), message.c_str());
  for (Thread& thread : threads) thread.started = false;  // their stacks are left as they are
  jump(nullptr);
}

void wait_for(const char* what, Site site) {
  current->waits_for = what;
  current->site = site;
  run_next();
}

void resume(Thread& thread) {
  thread.waits_for = nullptr;
  ready.push_back(&thread);
}

void syncthreads(Site site) {
  if (block.num_done > 0) {
    const Thread* ended = std::find_if(threads, threads + block.num_threads,
                                       [](const Thread& thread) { return thread.done; });
    fail(text("came to the barrier at %s, but %s has ended without it", place(site).c_str(),
              place(*ended).c_str()));
  }
  if (block.num_at_barrier == 0) {
    block.first_at_barrier = current;
  } else if (!same(site, block.first_at_barrier->site)) {
    fail(text("came to the barrier at %s while %s waits at the one at %s", place(site).c_str(),
              place(*block.first_at_barrier).c_str(), place(block.first_at_barrier->site).c_str()));
  }
  current->site = site;
  current->waits_for = "the barrier";
  if (++block.num_at_barrier == block.num_threads) {
    block.num_at_barrier = 0;
    ++block.epoch;
    for (int i = 0; i < block.num_threads; ++i) resume(threads[i]);
  }
  run_next();
}

cudaError_t run_grid(Kernel& kernel, dim3 grid, dim3 shape, size_t shared_bytes,
                     void (*function)(void*), void* context) {
  const size_t num_blocks = size_t{grid.x} * grid.y * grid.z;
  if (num_blocks == 0) return cudaSuccess;
  if (!error.empty()) return cudaErrorLaunchFailure;  // of an earlier launch of this call
  error = refusal(grid, shape, shared_bytes);
  if (!error.empty()) {
    error = text("%s: launched with %s", kernel.name, error.c_str());
    return last_error = cudaErrorInvalidConfiguration;
  }
  make_stacks();
  order.seed(seed);
  reset_launch();
  running = &kernel;
  body = function;
  body_context = context;
  block.grid = grid;
  block.shape = shape;
  block.num_threads = shape.x * shape.y * shape.z;
  run_blocks(num_blocks, shared_bytes);
  if (error.empty()) {
    const std::string broken = broken_red_zone();
    if (!broken.empty()) error = text("%s: %s", kernel.name, broken.c_str());
  }
  if (!error.empty()) return last_error = cudaErrorLaunchFailure;
  ++kernel.num_launches;
  kernel.num_threads = std::max<uint64_t>(kernel.num_threads, block.num_threads);
  kernel.shared_bytes = std::max<uint64_t>(kernel.shared_bytes, shared_bytes);
  return cudaSuccess;
}

Kernel::Kernel(const char* name) : name(name), next(kernels) { kernels = this; }

}  // namespace cuda_on_cpu

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : cuda_on_cpu::error.c_str();
}

cudaError_t cudaGetLastError() {
  return std::exchange(cuda_on_cpu::last_error, cudaSuccess);
}

extern "C" {
// Before each call: the seed of its orders; forgets earlier errors.
void cuda_on_cpu_begin(uint64_t seed) {
  cuda_on_cpu::seed = seed;
  cuda_on_cpu::error.clear();
  cuda_on_cpu::last_error = cudaSuccess;
}
const char* cuda_on_cpu_error() { return cuda_on_cpu::error.c_str(); }

// The kernels in turn: the first, then the one after `kernel`; null at the end.
const cuda_on_cpu::Kernel* cuda_on_cpu_next_kernel(const cuda_on_cpu::Kernel* kernel) {
  return kernel ? kernel->next : cuda_on_cpu::kernels;
}
const char* cuda_on_cpu_kernel_name(const cuda_on_cpu::Kernel* kernel) { return kernel->name; }
uint64_t cuda_on_cpu_num_launches(const cuda_on_cpu::Kernel* kernel) { return kernel->num_launches; }
uint64_t cuda_on_cpu_num_threads(const cuda_on_cpu::Kernel* kernel) { return kernel->num_threads; }
uint64_t cuda_on_cpu_shared_bytes(const cuda_on_cpu::Kernel* kernel) { return kernel->shared_bytes; }
}
