// The calls that GCC and clang put before every access (-fsanitize=thread) and where behaviour is
// undefined (-fsanitize=undefined), answered here in place of their own libraries.
#include "state.h"

using cuda_on_cpu::Access;

namespace {
void access(const void* address, size_t bytes, Access kind) {
  if (cuda_on_cpu::current) cuda_on_cpu::check_access(address, bytes, kind);
}
}  // namespace

extern "C" {

void __tsan_init() { cuda_on_cpu::checked = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define ACCESS_OF(bytes)                                                                    \
  void __tsan_read##bytes(void* at) { access(at, bytes, Access::read); }                    \
  void __tsan_write##bytes(void* at) { access(at, bytes, Access::write); }                  \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, Access::read); }          \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, Access::write); }
ACCESS_OF(1)
ACCESS_OF(2)
ACCESS_OF(4)
ACCESS_OF(8)
ACCESS_OF(16)

void __tsan_read_range(void* at, unsigned long bytes) { access(at, bytes, Access::read); }
void __tsan_write_range(void* at, unsigned long bytes) { access(at, bytes, Access::write); }

// The flag of a static variable that is made when first reached.
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) { return *at; }

}  // extern "C"
