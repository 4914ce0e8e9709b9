// dropout_mask, philox_bits and smart_noise on CUDA: from tensors to the launchers of philox_ops.h.
#include <c10/util/TypeCast.h>
#include <torch/library.h>

#include <cstring>

#include "cuda/binding.h"
#include "cuda/philox_ops.h"

namespace sbrrt::cuda::philox_binding {
namespace {

// [num_rows, width] of a dtype, uninitialised, after all checks that need no element.
at::Tensor empty_rows(const char* op, const at::Tensor& offsets, int64_t width,
                      const at::Tensor& rng, int64_t site, at::ScalarType dtype) {
  check_rng(op, rng);
  check_device(op, "rng", rng, at::kCUDA);
  check_uint32(op, "site", site);
  check_offsets(op, offsets);
  check_device(op, "offsets", offsets, at::kCUDA);
  check_width(op, width, offsets.size(0), c10::elementSize(dtype));
  return at::empty({offsets.size(0), width}, offsets.options().dtype(dtype));
}

// rng and offsets are contiguous.
PhiloxRowsParams rows_params(const at::Tensor& offsets, const at::Tensor& rng, int64_t site,
                             const at::Tensor& out) {
  return {out.size(0), out.size(1), rng.const_data_ptr<int64_t>(),
          offsets.const_data_ptr<int64_t>(), site, out.mutable_data_ptr()};
}

template <typename T>
uint64_t bits_of(double value) {
  const T number = c10::convert<T>(value);
  uint64_t bits = 0;
  std::memcpy(&bits, &number, sizeof(T));
  return bits;
}

uint64_t scale_bits(double p, at::ScalarType dtype) {
  const double scale = dropout_scale(p);
  switch (dtype) {
    case at::kFloat: return bits_of<float>(scale);
    case at::kDouble: return bits_of<double>(scale);
    case at::kBFloat16: return bits_of<at::BFloat16>(scale);
    default: return bits_of<at::Half>(scale);
  }
}

at::Tensor mask(const at::Tensor& offsets, int64_t width, double p, const at::Tensor& rng,
                int64_t site, at::ScalarType dtype) {
  constexpr auto op = "dropout_mask";
  check_probability(op, p);
  check_floating(op, dtype);
  const at::Tensor out = empty_rows(op, offsets, width, rng, site, dtype);
  const Launch launch(op, offsets, {rng});
  const at::Tensor starts = offsets.contiguous(), stream = rng.contiguous();
  launch(&dropout_mask,
         DropoutMaskParams{rows_params(starts, stream, site, out), dropout_threshold(p),
                           scale_bits(p, dtype), static_cast<int>(c10::elementSize(dtype))});
  return out;
}

at::Tensor bits(const at::Tensor& offsets, int64_t width, const at::Tensor& rng, int64_t site) {
  constexpr auto op = "philox_bits";
  const at::Tensor out = empty_rows(op, offsets, width, rng, site, at::kInt);
  const Launch launch(op, offsets, {rng});
  const at::Tensor starts = offsets.contiguous(), stream = rng.contiguous();
  launch(&philox_bits, rows_params(starts, stream, site, out));
  return out;
}

at::Tensor noise(const at::Tensor& offsets, int64_t width, const at::Tensor& rng, int64_t site) {
  constexpr auto op = "smart_noise";
  TORCH_CHECK_VALUE(width >= 4 && width % 4 == 0, "sbrrt::", op,
                    ": width must be a positive multiple of 4, got ", width);
  const at::Tensor out = empty_rows(op, offsets, width, rng, site, at::kFloat);
  const Launch launch(op, offsets, {rng});
  const at::Tensor starts = offsets.contiguous(), stream = rng.contiguous();
  launch(&smart_noise, rows_params(starts, stream, site, out));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(sbrrt, CUDA, m) {
  m.impl("dropout_mask", &mask);
  m.impl("philox_bits", &bits);
  m.impl("smart_noise", &noise);
}

}  // namespace sbrrt::cuda::philox_binding
