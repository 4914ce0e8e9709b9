// dropout_mask and philox_bits on the CPU: elements offsets[n] + j of a Philox stream.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/dropout.h"
#include "common/philox.h"
#include "common/philox_op.h"

namespace sbrrt {
namespace {

struct PhiloxRows {
  const int64_t* offsets;  // [num_rows]
  int64_t width;
  int64_t slots_per_row;  // blocks of 4 elements that a row touches at most
  PhiloxStream stream;
};

// What an element becomes: `bits` (of a floating-point number) where it is kept, else 0.
template <typename T>
struct KeptValue {
  uint32_t threshold;
  T bits;
};

struct RawWords {};

}  // namespace
}  // namespace sbrrt

#define SBRRT_KERNEL "cpu/dropout_mask_kernel.h"
#include "cpu/each_isa.h"

namespace sbrrt {
namespace {

constexpr int64_t kGrainSlots = 4096;  // 16k elements, near 10 us: well above the cost of a fork

template <typename Value, typename T>
void fill_slots(const PhiloxRows& rows, Value value, T* out, int64_t begin, int64_t end) {
  SBRRT_RETURN_ON_THIS_CPU(fill_slots, rows, value, out, begin, end)
}

template <typename Value, typename T>
void fill(const PhiloxRows& rows, int64_t num_rows, Value value, T* out) {
  at::parallel_for(0, num_rows * rows.slots_per_row, kGrainSlots, [&](int64_t begin, int64_t end) {
    fill_slots(rows, value, out, begin, end);
  });
}

// Offsets are contiguous.
PhiloxRows philox_rows(const char* op, const at::Tensor& offsets, int64_t width,
                       const PhiloxStream& stream) {
  const int64_t* data = offsets.const_data_ptr<int64_t>();
  int64_t all_bits = 0, largest = 0;
  for (int64_t n = 0; n < offsets.size(0); ++n) {
    all_bits |= data[n];
    largest = std::max(largest, data[n]);
  }
  TORCH_CHECK_VALUE(all_bits >= 0, "sbrrt::", op, ": offsets must not be negative");
  TORCH_CHECK_VALUE(largest <= std::numeric_limits<int64_t>::max() - width, "sbrrt::", op,
                    ": offsets + width must be below 2^63, got offset ", largest, " and width ",
                    width);
  const int64_t most_skipped = all_bits & 3;
  return {data, width, (width - 1 + most_skipped) / 4 + 1, stream};
}

template <typename T>
void fill_kept(const PhiloxRows& rows, const at::Tensor& out, double p) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  const T scale = c10::convert<T>(dropout_scale(p));
  KeptValue<Bits> kept{dropout_threshold(p), 0};
  std::memcpy(&kept.bits, &scale, sizeof(T));
  fill(rows, out.size(0), kept, static_cast<Bits*>(out.mutable_data_ptr()));
}

}  // namespace

void DropoutMask::run_cpu() const {
  const at::Tensor dense = offsets.contiguous();
  const PhiloxRows rows = philox_rows(kOp, dense, out.size(1), philox_stream(kOp, rng, site));
  switch (out.scalar_type()) {
    case at::kFloat: return fill_kept<float>(rows, out, p);
    case at::kDouble: return fill_kept<double>(rows, out, p);
    case at::kBFloat16: return fill_kept<at::BFloat16>(rows, out, p);
    default: return fill_kept<at::Half>(rows, out, p);
  }
}

void PhiloxBits::run_cpu() const {
  const at::Tensor dense = offsets.contiguous();
  const PhiloxRows rows = philox_rows(kOp, dense, out.size(1), philox_stream(kOp, rng, site));
  fill(rows, out.size(0), RawWords{}, static_cast<uint32_t*>(out.mutable_data_ptr()));
}

}  // namespace sbrrt
