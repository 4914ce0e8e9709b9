// The calls that GCC and clang put before every access (-fsanitize=thread) and where behaviour is
// undefined (-fsanitize=undefined), answered here in place of their own libraries.
#include <stdio.h>
#include <stdlib.h>

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

namespace {

// The head of what the compiler hands to every handler of undefined behaviour.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] void undefined(const char* what, const void* data) {
  const auto& at = *static_cast<const SourceLocation*>(data);
  if (!cuda_on_cpu::current) {
    fprintf(stderr, "undefined behaviour, %s: %s:%u:%u\n", what, at.file, at.line, at.column);
    abort();
  }
  cuda_on_cpu::fail(cuda_on_cpu::text("undefined behaviour, %s, at %s:%u:%u", what, at.file,
                                      at.line, at.column));
}

}  // namespace

// With -fno-sanitize-recover the compiler calls the names with _abort, and for what cannot go on
// those without.
#define UNDEFINED(name, what)                                                              \
  extern "C" void __ubsan_handle_##name##_abort(void* data) { undefined(what, data); }     \
  extern "C" void __ubsan_handle_##name(void* data) { undefined(what, data); }
UNDEFINED(add_overflow, "overflow of a sum")
UNDEFINED(sub_overflow, "overflow of a difference")
UNDEFINED(mul_overflow, "overflow of a product")
UNDEFINED(negate_overflow, "overflow of a negation")
UNDEFINED(divrem_overflow, "division")
UNDEFINED(shift_out_of_bounds, "shift by too much")
UNDEFINED(out_of_bounds, "index out of bounds")
UNDEFINED(type_mismatch_v1, "null or misaligned pointer")
UNDEFINED(pointer_overflow, "overflow of a pointer")
UNDEFINED(load_invalid_value, "invalid bool or enum")
UNDEFINED(float_cast_overflow, "overflow of a float that becomes a whole number")
UNDEFINED(builtin_unreachable, "unreachable code")
UNDEFINED(missing_return, "end of a function without return")
UNDEFINED(vla_bound_not_positive, "array without elements")
UNDEFINED(nonnull_arg, "null argument")
UNDEFINED(invalid_builtin, "argument of a builtin")
