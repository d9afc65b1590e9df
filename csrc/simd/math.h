// exp, tanh and erf on float32 lanes.
#pragma once

#include "simd/vec.h"

namespace lanewise::LANEWISE_TARGET {

// exp(x) = 2^n · exp(r), n the nearest integer to x/ln 2, |r| ≤ ln 2 / 2.
LANEWISE_INLINE f32v exp(f32v x) {
  const f32v shifted = x * 1.44269504f + 0x1.8p23f;
  const f32v n = shifted - 0x1.8p23f;
  f32v r = x - n * 0x1.62e4p-1f;
  r = r - n * -0x1.7f7d1cp-20f;
  f32v p = broadcast(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  f32v y = as_float(as_int(p) + (as_int(shifted) << 23));
  y = x < -87.33654f ? broadcast(0.0f) : y;
  y = x > 88.02969f ? broadcast(__builtin_inff()) : y;
  return x == x ? y : x;
}

LANEWISE_INLINE f32v tanh(f32v x) {
  f32v y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_tanhf(x[i]);
  return y;
}

LANEWISE_INLINE f32v erf(f32v x) {
  f32v y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_erff(x[i]);
  return y;
}

}  // namespace lanewise::LANEWISE_TARGET
