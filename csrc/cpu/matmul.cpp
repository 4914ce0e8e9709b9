// mm_into on the CPU: torch's matrix product, cut over the threads.
//
// The library's own division of a product with few rows and columns leaves most threads idle, and
// all of them wait for each other between its stages. Here each thread multiplies a part of its own
// from beginning to end: columns of the result, or, where the left factor lies transposed (a
// weight's gradient), rows. Where the processor cannot multiply bfloat16, the factors are widened:
// their products are exact in float32, so this too is a bfloat16 product with float32 sums.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cstdint>

#include "common/matmul_op.h"
#include "cpu/widened.h"

namespace sbrrt {
namespace {

constexpr int64_t kPartStep = 32;  // rows or columns: whole tiles of the widest instruction set
constexpr int64_t kMinPart = 128;  // below, packing a factor costs more than a thread gains

// The size of each part of `size` rows or columns, a multiple of kPartStep but for the last.
int64_t part_size(int64_t size, int64_t num_parts) {
  const int64_t steps = (size + kPartStep - 1) / kPartStep;
  return (steps + num_parts - 1) / num_parts * kPartStep;
}

void multiply(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  const int64_t dim = a.stride(0) == 1 && a.stride(1) != 1 ? 0 : 1, size = out.size(dim);
  const int64_t num_threads = at::get_num_threads();
  if (num_threads == 1 || size < num_threads * kMinPart) {
    at::Tensor whole = out;
    at::mm_out(whole, a, b);
    return;
  }
  const int64_t part = part_size(size, num_threads);
  at::parallel_for(0, (size + part - 1) / part, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t first = begin * part; first < std::min(end * part, size); first += part) {
      const int64_t count = std::min(part, size - first);
      at::Tensor to = out.narrow(dim, first, count);
      at::mm_out(to, dim == 0 ? a.narrow(0, first, count) : a,
                 dim == 1 ? b.narrow(1, first, count) : b);
    }
  });
}

void multiply_widened(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  static thread_local WideMatrix left, right, result;
  const at::Tensor wide = result.like(out);
  multiply(left.copy_of(a), right.copy_of(b), wide);
  out.copy_(wide);  // rounds to nearest even
}

}  // namespace

void Matmul::run_cpu() const {
  if (a.scalar_type() == at::kBFloat16 && !has_bfloat16_products()) {
    multiply_widened(a, b, out);
  } else {
    multiply(a, b, out);
  }
}

}  // namespace sbrrt
