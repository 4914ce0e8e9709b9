// What the launchers of row ops take alike, for tests: rows are a pointer and a stride in elements.
#pragma once

#include "common/dropout.h"
#include "cuda/common/params.h"

#include <cuda_on_cpu/export.h>

namespace sbrrt::cuda {

inline DropoutParams dropout_of(double p, const int64_t* rng, int64_t site) {
  return {rng, site, dropout_threshold(p), static_cast<float>(dropout_scale(p))};
}

inline RowDropoutParams dropout_of(double p, const int64_t* rng, int64_t site,
                                   const int64_t* offsets) {
  return {dropout_of(p, rng, site), offsets};
}

inline ElementType element(int64_t number) { return static_cast<ElementType>(number); }

}  // namespace sbrrt::cuda
