// dropout_mask, philox_bits and smart_noise on CUDA: from tensors to the launchers of philox_ops.h.
#include <c10/util/TypeCast.h>

#include <cstring>

#include "common/philox_op.h"
#include "cuda/binding.h"
#include "cuda/philox_ops.h"

namespace sbrrt {

using namespace cuda;

namespace {

// Contiguous forms of offsets and rng, which must live until the launch.
struct DenseStream {
  at::Tensor offsets, rng;
  PhiloxRowsParams rows;

  DenseStream(TensorRef offsets_, TensorRef rng_, int64_t site, TensorRef out)
      : offsets(offsets_.contiguous()),
        rng(rng_.contiguous()),
        rows{out.size(0), out.size(1), rng.const_data_ptr<int64_t>(),
             offsets.const_data_ptr<int64_t>(), site, out.mutable_data_ptr()} {}
};

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

}  // namespace

void DropoutMask::run_cuda() const {
  const Launch launch(kOp, out, {offsets, rng});
  const DenseStream stream(offsets, rng, site, out);
  launch(&dropout_mask,
         DropoutMaskParams{stream.rows, dropout_threshold(p), scale_bits(p, out.scalar_type()),
                           static_cast<int>(out.element_size())});
}

void PhiloxBits::run_cuda() const {
  const Launch launch(kOp, out, {offsets, rng});
  launch(&philox_bits, DenseStream(offsets, rng, site, out).rows);
}

void SmartNoise::run_cuda() const {
  const Launch launch(kOp, out, {offsets, rng});
  launch(&smart_noise, DenseStream(offsets, rng, site, out).rows);
}

}  // namespace sbrrt
