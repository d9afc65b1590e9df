// Activation functions of linear and gated_linear: the torch-free face.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu, tanh };

// The gradient through out = act(z) or, with `up`, out = act(z) · up, in place: z becomes the
// gradient with respect to z, and up that with respect to up. Strides count elements; the innermost
// is 1.
struct ActivationBackwardParams {
  Activation activation;
  int64_t rows, cols;
  float* z;
  int64_t z_row_stride;
  float* up;  // nullptr: not gated
  int64_t up_row_stride;
  const void* grad;  // with respect to out
  DType grad_dtype;
  int64_t grad_row_stride;
  int threads;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void activation_backward(const ActivationBackwardParams& p);
}
#endif

}  // namespace lanewise
