// What a kernel may touch, and when. Kernels compiled with -fsanitize=thread report every access
// (hooks.cpp); each must lie in shared memory or in a registered buffer, must not read what nobody
// wrote, and must not meet another thread's access that no barrier orders.
#include <link.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace cuda_on_cpu {

namespace {

constexpr size_t kGap = 256;  // around every buffer and shared array
constexpr size_t kArenaBytes = 512 << 10;
constexpr int kGranule = 2;  // bytes that one cell stands for: the smallest number kernels store
constexpr unsigned char kPoison = 0xff;  // NaN in every type
constexpr unsigned char kRedZone = 0xfd;
constexpr int kNobody = -1, kSeveral = -2;

enum class State : uint8_t { outside, never_written, written, in_flight };

// Who came last to a granule, and when; counts of barriers are the clock.
struct Cell {
  State state = State::outside;
  int16_t writer = kNobody, reader = kNobody, reader_warp = kNobody;
  uint32_t launch = 0;
  int block = kNobody;  // that wrote or read it in this launch; kSeveral have read it
  bool block_wrote = false;
  unsigned write_epoch = 0, write_warp_epoch = 0, read_epoch = 0, read_warp_epoch = 0;
};

struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  Cell* cells;  // calloc: pages nobody touches cost nothing
};

struct StaticArray {
  const void* key;
  size_t offset, bytes;
};

alignas(256) char arena[kArenaBytes];
Cell arena_cells[kArenaBytes / kGranule];
std::vector<StaticArray> static_arrays;
size_t dynamic_bytes = 0, static_end = 0;
std::vector<Buffer> buffers;
uint32_t launch_number = 0;
uint64_t num_global_reads = 0;

constexpr size_t kStaticStart = kGap + kMaxShared + kGap;

int block_number() {
  return block.index.x + block.grid.x * (block.index.y + block.grid.y * block.index.z);
}

bool in_arena(const void* address) {
  return address >= arena && static_cast<const char*>(address) < arena + kArenaBytes;
}

void open(size_t offset, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(arena + offset, bytes);
  memset(arena + offset, kPoison, bytes);
  if (!checked) return;
  Cell cell;
  cell.state = State::never_written;
  std::fill_n(arena_cells + offset / kGranule, (bytes + kGranule - 1) / kGranule, cell);
}

void close(size_t offset, size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(arena + offset, bytes);
  memset(arena + offset, kRedZone, bytes);
  ASAN_POISON_MEMORY_REGION(arena + offset, bytes);
  if (checked) std::fill_n(arena_cells + offset / kGranule, bytes / kGranule + 1, Cell{});
}

const char* word(Access access) { return access == Access::read ? "read" : "write"; }

std::string where(const void* address) {
  const char* at = static_cast<const char*>(address);
  if (in_arena(address)) {
    const size_t offset = at - arena;
    if (offset < kStaticStart - kGap / 2) {
      return text("byte %td of dynamic shared memory (%zu bytes)", at - arena - ptrdiff_t(kGap),
                  dynamic_bytes);
    }
    for (const StaticArray& array : static_arrays) {
      if (offset + kGap / 2 < array.offset || offset >= array.offset + array.bytes + kGap / 2) continue;
      return text("byte %td of a static shared array (%zu bytes)",
                  ptrdiff_t(offset) - ptrdiff_t(array.offset), array.bytes);
    }
    return "shared memory that holds no array";
  }
  for (const Buffer& buffer : buffers) {
    if (at < buffer.begin - kGap || at >= buffer.begin + buffer.bytes + kGap) continue;
    return text("byte %td of %s (%zu bytes)", at - buffer.begin, buffer.name.c_str(), buffer.bytes);
  }
  return "memory that is not the device's";
}

[[noreturn]] void refuse(const void* address, size_t bytes, Access access, const char* why) {
  fail(text("%s of %zu bytes at %s: %s", word(access), bytes, where(address).c_str(), why));
}

// Whether the kept access of `thread`'s warp lies before a __syncwarp that the current one passed.
bool ordered_in_warp(int warp, unsigned warp_epoch) {
  return warp == current->warp() && warp_epoch < current->warp_epoch;
}

bool write_conflicts(const Cell& cell) {
  return cell.writer != kNobody && cell.writer != current->number &&
         cell.write_epoch == block.epoch &&
         !ordered_in_warp(cell.writer / kWarp, cell.write_warp_epoch);
}

bool reads_conflict(const Cell& cell) {
  return cell.reader != kNobody && cell.reader != current->number &&
         cell.read_epoch == block.epoch && !ordered_in_warp(cell.reader_warp, cell.read_warp_epoch);
}

void remember_read(Cell& cell) {
  const bool old = cell.reader == kNobody || cell.read_epoch != block.epoch ||
                   ordered_in_warp(cell.reader_warp, cell.read_warp_epoch);
  if (old || cell.reader == current->number) {
    cell.reader = current->number;
    cell.reader_warp = current->warp();
  } else {
    cell.reader = kSeveral;
    if (cell.reader_warp != current->warp()) cell.reader_warp = kSeveral;
  }
  cell.read_epoch = block.epoch;
  cell.read_warp_epoch = current->warp_epoch;
}

void remember_write(Cell& cell) {
  cell.state = State::written;
  cell.writer = current->number;
  cell.write_epoch = block.epoch;
  cell.write_warp_epoch = current->warp_epoch;
}

// Blocks of a launch are in no order: one may not read or write what another writes.
const char* conflict_of_blocks(Cell& cell, Access access) {
  if (cell.launch != launch_number) {
    const State state = cell.state;
    cell = Cell{};
    cell.state = state;
    cell.launch = launch_number;
  }
  const int number = block_number();
  if (cell.block != kNobody && cell.block != number) {
    if (cell.block_wrote) return "another block wrote it in this launch";
    if (access == Access::write) return "another block read it in this launch";
    cell.block = kSeveral;
    cell.reader = kNobody;
  } else {
    cell.block = number;
  }
  cell.block_wrote = cell.block_wrote || access == Access::write;
  return nullptr;
}

const char* conflict(Cell& cell, Access access) {
  if (cell.state == State::outside) return "out of bounds";
  if (cell.state == State::in_flight) return "a cp.async to it has not been waited for";
  if (access == Access::read && cell.state == State::never_written) return "nobody wrote it";
  if (write_conflicts(cell)) return "another thread wrote it, with no barrier between";
  if (access == Access::write) {
    if (reads_conflict(cell)) return "another thread reads it, with no barrier between";
    remember_write(cell);
  } else {
    remember_read(cell);
  }
  return nullptr;
}

Buffer* buffer_at(const void* address, size_t bytes) {
  static size_t latest = 0;
  const char* at = static_cast<const char*>(address);
  const auto holds = [&](const Buffer& buffer) {
    return at >= buffer.begin && at + bytes <= buffer.begin + buffer.bytes;
  };
  if (latest < buffers.size() && holds(buffers[latest])) return &buffers[latest];
  for (latest = 0; latest < buffers.size(); ++latest) {
    if (holds(buffers[latest])) return &buffers[latest];
  }
  return nullptr;
}

// Constants of the program itself may be read.
bool in_program(const void* address) {
  static uintptr_t begin = 0, end = 0;
  if (!end) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          uintptr_t low = UINTPTR_MAX, high = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD) continue;
            low = std::min(low, uintptr_t(info->dlpi_addr + part.p_vaddr));
            high = std::max(high, uintptr_t(info->dlpi_addr + part.p_vaddr + part.p_memsz));
          }
          const auto here = reinterpret_cast<uintptr_t>(arena);
          if (here < low || here >= high) return 0;
          begin = low;
          end = high;
          return 1;
        },
        nullptr);
  }
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= begin && at < end;
}

void check_cells(Cell* cells, size_t offset, const void* address, size_t bytes, Access access,
                 bool global) {
  const size_t first = offset / kGranule, last = (offset + bytes - 1) / kGranule;
  for (size_t i = first; i <= last; ++i) {
    const char* why = global ? conflict_of_blocks(cells[i], access) : nullptr;
    if (!why) why = conflict(cells[i], access);
    if (why) refuse(address, bytes, access, why);
  }
}

void check_global(const void* address, size_t bytes, Access access) {
  if (access == Access::read) ++num_global_reads;
  if (Buffer* buffer = buffer_at(address, bytes)) {
    if (!current->may_start) refuse(address, bytes, access, "before await_previous_kernel()");
    const size_t offset = static_cast<const char*>(address) - buffer->begin;
    return check_cells(buffer->cells, offset, address, bytes, access, true);
  }
  if (access == Access::read && in_program(address)) return;
  refuse(address, bytes, access, "out of bounds");
}

}  // namespace

void check_access(const void* address, size_t bytes, Access access) {
  if (!checked || on_own_stack(address)) return;
  if (!in_arena(address)) return check_global(address, bytes, access);
  check_cells(arena_cells, static_cast<const char*>(address) - arena, address, bytes, access, false);
}

// Atomics meet each other in any order, so only bounds are checked; the result counts as written.
void check_atomic(const void* address, size_t bytes) {
  check_aligned(address, bytes);
  if (!checked || on_own_stack(address)) return;
  if (in_arena(address)) return;
  if (!buffer_at(address, bytes)) refuse(address, bytes, Access::write, "out of bounds");
  if (!current->may_start) refuse(address, bytes, Access::write, "before await_previous_kernel()");
}

void check_aligned(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fail(text("an access of %d bytes at %s, which is not a multiple of %d", bytes,
            where(address).c_str(), bytes));
}

void copy(void* to, const void* from, int bytes) {
  check_aligned(to, bytes);
  check_aligned(from, bytes);
  check_access(from, bytes, Access::read);
  check_access(to, bytes, Access::write);
  memcpy(to, from, bytes);
}

void reset_launch() { ++launch_number; }

void reset_shared(size_t bytes) {
  close(0, kGap + dynamic_bytes + kGap);
  if (static_end > 0) close(kStaticStart - kGap, static_end + kGap - (kStaticStart - kGap));
  static_arrays.clear();
  static_end = kStaticStart;
  dynamic_bytes = bytes;
  open(kGap, bytes);
}

void* dynamic_shared() { return arena + kGap; }

void* static_shared(const void* key, size_t bytes) {
  size_t total = dynamic_bytes + bytes;
  for (const StaticArray& array : static_arrays) {
    if (array.key == key) return arena + array.offset;
    total += array.bytes;
  }
  if (total > kMaxShared || total - dynamic_bytes > (48 << 10)) {
    fail(text("%zu bytes of shared memory, %zu of them static; at most %zu and %d", total,
              total - dynamic_bytes, kMaxShared, 48 << 10));
  }
  static_arrays.push_back({key, static_end, bytes});
  open(static_end, bytes);
  static_end = (static_end + bytes + 2 * kGap - 1) / kGap * kGap;
  return arena + static_arrays.back().offset;
}

void copy_starts(const Copy& copy) {
  if (!in_arena(copy.shared)) fail("cp.async to an address that is not in shared memory");
  check_access(copy.shared, 16, Access::write);
  if (copy.valid) check_access(copy.global, 16, Access::read);
  memset(copy.shared, kPoison, 16);
  Cell* cells = arena_cells + (static_cast<char*>(copy.shared) - arena) / kGranule;
  for (int i = 0; checked && i < 16 / kGranule; ++i) cells[i].state = State::in_flight;
}

void copy_lands(const Copy& copy) {
  if (copy.valid) {
    memcpy(copy.shared, copy.global, 16);
  } else {
    memset(copy.shared, 0, 16);
  }
  Cell* cells = arena_cells + (static_cast<char*>(copy.shared) - arena) / kGranule;
  for (int i = 0; checked && i < 16 / kGranule; ++i) remember_write(cells[i]);
}

std::string broken_red_zone() {
#if defined(__SANITIZE_ADDRESS__)
  return "";  // whoever touches one is stopped
#endif
  for (const Buffer& buffer : buffers) {
    const char* end = buffer.begin + buffer.bytes;
    for (const char* zone : {static_cast<const char*>(buffer.begin - kGap), end}) {
      for (size_t i = 0; i < kGap; ++i) {
        if (static_cast<unsigned char>(zone[i]) == kRedZone) continue;
        return "a thread wrote to " + where(zone + i);
      }
    }
  }
  return "";
}

}  // namespace cuda_on_cpu

extern "C" {

// `bytes` of device memory between red zones; contents undefined until the caller fills them.
void* cuda_on_cpu_buffer(size_t bytes, const char* name, int written) {
  using namespace cuda_on_cpu;
  const size_t rounded = (bytes + 2 * kGap + 255) / 256 * 256;
  char* memory = static_cast<char*>(aligned_alloc(256, rounded));
  memset(memory, kRedZone, rounded);
  memset(memory + kGap, kPoison, bytes);
  ASAN_POISON_MEMORY_REGION(memory, kGap);
  ASAN_POISON_MEMORY_REGION(memory + kGap + bytes, kGap);
  const size_t num_cells = bytes / kGranule + 1;
  Cell* cells = checked ? static_cast<Cell*>(calloc(num_cells, sizeof(Cell))) : nullptr;
  for (size_t i = 0; cells && i < num_cells; ++i) {
    cells[i].state = written ? State::written : State::never_written;
    cells[i].writer = kNobody;
  }
  buffers.push_back({name, memory + kGap, bytes, cells});
  return memory + kGap;
}

// How often kernels compiled as `checked` have read global memory.
uint64_t cuda_on_cpu_num_global_reads() { return cuda_on_cpu::num_global_reads; }

void cuda_on_cpu_release_all() {
  using namespace cuda_on_cpu;
  for (const Buffer& buffer : buffers) {
    ASAN_UNPOISON_MEMORY_REGION(buffer.begin - kGap, buffer.bytes + 2 * kGap);
    free(buffer.begin - kGap);
    free(buffer.cells);
  }
  buffers.clear();
}
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  using namespace cuda_on_cpu;
  Buffer* buffer = buffer_at(to, bytes);
  if (!buffer) return cudaErrorInvalidValue;
  memset(to, byte, bytes);
  const size_t first = (static_cast<char*>(to) - buffer->begin) / kGranule;
  for (size_t i = 0; buffer->cells && i < (bytes + kGranule - 1) / kGranule; ++i) {
    buffer->cells[first + i].state = State::written;
  }
  return cudaSuccess;
}
