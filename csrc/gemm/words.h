// What panels hold: words of 32 bits, one float32 or two bfloat16 that are neighbours in k.
//
// A pair widens with one instruction for each half (a shift, a mask) and nothing crosses lanes; it
// is also what the dot-product instruction of AVX512-BF16 reads. So bfloat16 panels are pairs on
// every target. float16 has no such shortcut: its panels hold single elements.
#pragma once

#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

// May lie at any address that a bfloat16 may.
struct __attribute__((packed, aligned(2))) bf16x2 {
  uint32_t bits;  // the even element of k in the lower half
};

#if defined(__AVX512BF16__) && LANEWISE_LANES == 16
inline constexpr bool kMultipliesPairs = true;
#else
inline constexpr bool kMultipliesPairs = false;
#endif

// Elements of k in one word.
template <class Word>
inline constexpr int kDepthOf = 1;
template <>
inline constexpr int kDepthOf<bf16x2> = 2;

using pairs = u32v;
namespace unaligned {
using pairs = uint32_t __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
}  // namespace unaligned

LANEWISE_INLINE pairs load(const bf16x2* p) {
  return *reinterpret_cast<const unaligned::pairs*>(p);
}
LANEWISE_INLINE void store(bf16x2* p, pairs v) { *reinterpret_cast<unaligned::pairs*>(p) = v; }
LANEWISE_INLINE pairs broadcast(bf16x2 word) { return broadcast(word.bits); }

LANEWISE_INLINE f32v widen_even(pairs v) { return as_float(v << 16); }
LANEWISE_INLINE f32v widen_odd(pairs v) { return as_float(v & 0xffff0000u); }
// sum + a · b over the k of one word. The machine's product of pairs takes everything subnormal for
// zero, operands, products and sums, adds the odd product first and rounds in between.
LANEWISE_INLINE f32v multiply_add(f32v a, f32v b, f32v sum) { return sum + a * b; }
LANEWISE_INLINE f32v multiply_add(pairs a, pairs b, f32v sum) {
#if defined(__AVX512BF16__) && LANEWISE_LANES == 16
  return reinterpret_cast<f32v>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#else
  return sum + widen_odd(a) * widen_odd(b) + widen_even(a) * widen_even(b);
#endif
}

}  // namespace lanewise::LANEWISE_TARGET
