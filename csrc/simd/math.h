// exp, tanh and erf on float32 lanes: branch-free, NaN in gives NaN out.
//
// The errors stated are maxima over every float32, against a double precision reference; the tests
// sweep them all, on every target. The polynomials are our own minimax fits: a linear program over
// Chebyshev nodes minimises the largest weighted error, then the coefficients are rounded to
// float32 one at a time, lowest first, and the rest fitted again.
#pragma once

#include "simd/vec.h"

namespace lanewise::LANEWISE_TARGET {

// The parts that they share.
namespace parts {

struct Split {
  f32v rest;   // x - n·ln 2, at most ln 2 / 2 in magnitude, n an integer
  f32v power;  // 2^(n + bias - 127)
};

// Adding 1.5·2^23 rounds to an integer and leaves it in the low bits of the sum, where one shift
// makes a power of two of it. ln 2 comes in two parts, the first so short that its product with n
// is exact without FMA (Cody and Waite, 1980).
LANEWISE_INLINE Split split(f32v x, float bias) {
  const f32v shifter = broadcast(0x1.8p23f + bias);
  const f32v shifted = x * 0x1.715476p0f + shifter;
  const f32v n = shifted - shifter;
  const f32v rest = x - n * 0x1.62e4p-1f;
  return {rest - n * 0x1.7f7d1cp-20f, as_float(as_int(shifted) << 23)};
}

// (e^r - 1 - r) / r² times `scale`, a power of two, for |r| ≤ ln 2 / 2: e^r - 1 comes out within
// 2^-26 relative.
LANEWISE_INLINE f32v tail(f32v r, float scale) {
  f32v p = broadcast(0x1.6b9ca4p-10f * scale);
  p = p * r + 0x1.12256p-7f * scale;
  p = p * r + 0x1.5556f2p-5f * scale;
  p = p * r + 0x1.5554b4p-3f * scale;
  return p * r + 0x1.fffffep-2f * scale;
}

// e^x - 1 = 2^n·(e^r - 1) + (2^n - 1) for |x| ≤ 87. Where x is small n is 0 and the rest adds
// nothing; r goes in last and exactly, so that the result is almost as good as its rounding.
LANEWISE_INLINE f32v expm1(f32v x) {
  const auto [r, power] = split(x, 127);
  const f32v y = tail(r, 1) * (r * r) + r;
  return y * power + (power - 1.0f);
}

// The magnitude of y with the sign of x.
LANEWISE_INLINE f32v with_sign_of(f32v x, f32v y) {
  return as_float((as_int(y) & INT32_MAX) | (as_int(x) & INT32_MIN));
}

}  // namespace parts

// Within 0.92 ulp, 1.19 without FMA. Results under 2^-125.5 (x < -86.99) are 0.
LANEWISE_INLINE f32v exp(f32v x) {
  // The polynomial gives 2·e^r and the power is 2^(n-1), so that the one product overflows to
  // infinity exactly where e^x does (n = 128). At n = -126 the power's exponent field is 0, which
  // makes the result 0: the bounds keep n in between, and let NaN pass as their second operand.
  const f32v bounded = max(broadcast(-87.0f), min(broadcast(89.0f), x));
  const auto [r, power] = parts::split(bounded, 126);
  return ((parts::tail(r, 2) * r + 2.0f) * r + 2.0f) * power;
}

// 2^x for x below 128, within 0.88 ulp, 1.08 without FMA; results up to 2^-126.5 are 0. What it has
// no answer for, +infinity, gives NaN; from 128 on it is wrong. With a `factor`, 2^(factor · x):
// the product costs nothing and is not rounded where there is FMA.
LANEWISE_INLINE f32v exp2(f32v x, float factor = 1.0f) {
  // As exp, without a bound above, and n·1 instead of n·ln 2 is exact.
  const f32v shifter = broadcast(0x1.8p23f + 127);
  const f32v bounded = max(broadcast(-127.0f / factor), x);
  const f32v shifted = bounded * factor + shifter;
  const f32v r = bounded * factor - (shifted - shifter);
  f32v p = broadcast(0x1.416b5ep-13f);
  p = p * r + 0x1.5f082ep-10f;
  p = p * r + 0x1.3b2de0p-7f;
  p = p * r + 0x1.c6af7cp-5f;
  p = p * r + 0x1.ebfbdcp-3f;
  p = p * r + 0x1.62e430p-1f;
  return (p * r + 1.0f) * as_float(as_int(shifted) << 23);
}

// Within 1.86 ulp, 2.05 without FMA.
LANEWISE_INLINE f32v tanh(f32v x) {
  // tanh |x| = t / (t + 2) with t = e^(2|x|) - 1; from 9.02 on it rounds to 1. Small t would suffer
  // from the rounding of t + 2: there the quotient only corrects t / 2.
  const f32v t = parts::expm1(min(broadcast(20.0f), abs(x) * 2.0f));
  const f32v quotient = t / (t + 2.0f);
  const f32v half = t * 0.5f;
  return parts::with_sign_of(x, select(t < 1.0f, half - half * quotient, quotient));
}

// Within 1.85 ulp, 2.16 without FMA.
LANEWISE_INLINE f32v erf(f32v x) {
  // erf |x| = 1 - e^(-q) with q = -ln(erfc |x|), which is smooth: one polynomial serves the whole
  // range, weighted by how much q matters to the result. From 3.84 on erf rounds to 1.
  const f32v a = min(broadcast(3.92f), abs(x));
  f32v p = broadcast(-0x1.3af0d2p-17f);
  p = p * a + 0x1.f27c2ep-14f;
  p = p * a - 0x1.4e2512p-11f;
  p = p * a + 0x1.b74236p-10f;
  p = p * a - 0x1.636f48p-13f;
  p = p * a - 0x1.39b7cep-6f;
  p = p * a + 0x1.a4f8c4p-4f;
  p = p * a + 0x1.45f3p-1f;
  p = p * a + 0x1.06eba8p-3f;  // 2/√π less 1, whose product is exact
  const f32v q = p * a + a;
  return parts::with_sign_of(x, parts::expm1(-q));
}

}  // namespace lanewise::LANEWISE_TARGET
