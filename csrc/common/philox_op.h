// dropout_mask, philox_bits and smart_noise as ops (common/op.h).
#pragma once

#include "common/checks.h"
#include "common/op.h"
#include "common/write_set.h"

namespace sbrrt {

// out [num_rows, width], of which element (n, j) has the logical index offsets[n] + j.
struct DropoutMask {
  static constexpr auto kOp = "dropout_mask";
  using Signature = void(TensorRef, double, TensorRef, int64_t, TensorRef);
  TensorRef offsets;
  double p;
  TensorRef rng;
  int64_t site;
  TensorRef out;  // of any floating-point dtype: 0, or 1 / (1 - p)

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct PhiloxBits {
  static constexpr auto kOp = "philox_bits";
  using Signature = void(TensorRef, TensorRef, int64_t, TensorRef);
  TensorRef offsets, rng;
  int64_t site;
  TensorRef out;  // int32: the bits of a random word each

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

struct SmartNoise {
  static constexpr auto kOp = "smart_noise";
  using Signature = void(TensorRef, TensorRef, int64_t, TensorRef);
  TensorRef offsets, rng;
  int64_t site;
  TensorRef out;  // float32: standard normal numbers

  WriteSet check(at::DeviceType device) const;
  void run_cpu() const;
  void run_cuda() const;
};

// All but the values of offsets and rng.
inline WriteSet philox_write_set(const char* op, TensorRef offsets, TensorRef rng, int64_t site,
                                 TensorRef out, at::ScalarType dtype, at::DeviceType device) {
  check_offsets(op, offsets);
  check_device(op, "offsets", offsets, device);
  check_rng(op, rng);
  check_device(op, "rng", rng, device);
  check_uint32(op, "site", site);
  check_written(op, "out", out, dtype, "[num_rows, width >= 1]",
                out.dim() == 2 && out.sym_size(0) == offsets.sym_size(0) && out.sym_size(1) >= 1,
                device);
  return {op, {{"out", out}}, {{"offsets", offsets}, {"rng", rng}}};
}

inline WriteSet DropoutMask::check(at::DeviceType device) const {
  check_probability(kOp, p);
  check_floating(kOp, "out", out);
  return philox_write_set(kOp, offsets, rng, site, out, out.scalar_type(), device);
}

inline WriteSet PhiloxBits::check(at::DeviceType device) const {
  return philox_write_set(kOp, offsets, rng, site, out, at::kInt, device);
}

inline WriteSet SmartNoise::check(at::DeviceType device) const {
  const WriteSet writes = philox_write_set(kOp, offsets, rng, site, out, at::kFloat, device);
  TORCH_CHECK_VALUE(out.sym_size(1) % 4 == 0, "sbrrt::", kOp,
                    ": the width of out must be a positive multiple of 4, got ", out.sym_size(1));
  return writes;
}

}  // namespace sbrrt
