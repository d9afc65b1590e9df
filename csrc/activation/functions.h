// The activation functions and their derivatives on float32 lanes. NaN gives NaN in all of them.
#pragma once

#include "activation/kernel.h"
#include "simd/math.h"

namespace lanewise::LANEWISE_TARGET {

struct Sigmoid {
  f32v value;
  f32v slope;  // its derivative, value · (1 - value)
};

// By exp(-|x|), which neither overflows nor leaves 1 - value to cancellation.
LANEWISE_INLINE Sigmoid sigmoid(f32v x) {
  const f32v e = exp(-abs(x));
  const f32v upper = 1.0f / (1.0f + e);
  const f32v lower = e * upper;
  return {select(x < 0.0f, lower, upper), lower * upper};
}

// 2·√(2/π)·(z + 0.044715 z³): (1 + tanh(u)) / 2 is the sigmoid of 2u, which unlike the sum keeps
// its relative accuracy where tanh(u) nears -1.
LANEWISE_INLINE f32v gelu_tanh_argument(f32v z) {
  return z * (1.59576912f + 0.0713548163f * (z * z));
}

template <Activation A>
LANEWISE_INLINE f32v activate(f32v z) {
  if constexpr (A == Activation::relu) return max(f32v{}, z);
  if constexpr (A == Activation::gelu) return 0.5f * z * (1.0f + erf(z * 0.707106781f));
  if constexpr (A == Activation::gelu_tanh) return z / (1.0f + exp(-gelu_tanh_argument(z)));
  if constexpr (A == Activation::silu) return z / (1.0f + exp(-z));
  if constexpr (A == Activation::tanh) return tanh(z);
  return z;
}

template <Activation A>
LANEWISE_INLINE f32v activation_gradient(f32v z) {
  if constexpr (A == Activation::relu) {
    const f32v step = z > 0.0f ? broadcast(1.0f) : f32v{};
    return z == z ? step : z;
  }
  if constexpr (A == Activation::gelu) {
    const f32v density = 0.398942280f * exp(-0.5f * (z * z));
    return 0.5f * (1.0f + erf(z * 0.707106781f)) + z * density;
  }
  if constexpr (A == Activation::gelu_tanh) {
    // Beyond ±16 the derivative is 1 or 0 in float32, but z³ would overflow and give ∞ · 0.
    const f32v near = min(broadcast(16.0f), max(broadcast(-16.0f), z));
    const auto [s, slope] = sigmoid(gelu_tanh_argument(near));
    return s + near * slope * (1.59576912f + 0.214064449f * (near * near));
  }
  if constexpr (A == Activation::silu) {
    const auto [s, slope] = sigmoid(z);
    return s + z * slope;
  }
  if constexpr (A == Activation::tanh) {
    // 1 - tanh² = 4e / (1 + e)² with e = exp(-2|z|): no cancellation at either end.
    const f32v e = exp(-2.0f * abs(z));
    const f32v t = 1.0f + e;
    return 4.0f * e / (t * t);
  }
  return broadcast(1.0f);
}

template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

// Calls f with a tag whose `value` is the activation as a constant: one instantiation for each.
template <class F>
LANEWISE_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::none:
      return f(ActivationTag<Activation::none>{});
    case Activation::relu:
      return f(ActivationTag<Activation::relu>{});
    case Activation::gelu:
      return f(ActivationTag<Activation::gelu>{});
    case Activation::gelu_tanh:
      return f(ActivationTag<Activation::gelu_tanh>{});
    case Activation::silu:
      return f(ActivationTag<Activation::silu>{});
    case Activation::tanh:
      return f(ActivationTag<Activation::tanh>{});
  }
}

}  // namespace lanewise::LANEWISE_TARGET
