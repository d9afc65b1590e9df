// Rotary position embedding: the torch-free face.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

// out[b,h,s,:] = x[b,h,s,:] with its first 2·half elements rotated pairwise by the angles whose
// cosines and sines are given, the rest copied. Strides count elements; the innermost is 1.
struct RopeParams {
  DType dtype;
  int64_t batch, heads, seq, dim;
  int64_t half;      // pairs rotated, 2·half ≤ dim
  bool interleaved;  // pairs (2i, 2i+1) instead of (i, i+half)
  bool inverse;      // rotate by the negative angle: the transposed map, which is the gradient
  const void* x;
  int64_t x_batch, x_head, x_seq;
  const float* cos;  // [seq, half] or [batch, seq, half]
  const float* sin;
  int64_t cos_batch, cos_seq;  // cos_batch is 0 where one table serves all
  int64_t sin_batch, sin_seq;
  void* out;
  int64_t out_batch, out_head, out_seq;
  int threads;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void rope(const RopeParams& p);
}
#endif

}  // namespace lanewise
