// What smart_ascend does to a group of tokens. Shared by host and device; needs no torch header.
#pragma once

namespace sbrrt {

struct AscendOptions {
  double step_size;
  float radius;
  bool is_infinite;  // the step
  bool normalize_gradient;
  bool is_ball, is_sup, is_sequence;
  bool is_clamp, is_sign;  // the projection where it needs no norm
};

}  // namespace sbrrt
