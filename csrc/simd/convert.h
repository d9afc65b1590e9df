// bfloat16 and float16 against float32, rounding to nearest even.
#pragma once

#include "simd/vec.h"

namespace lanewise::LANEWISE_TARGET {

// One instruction, by name: the compiler's own code converts halves and joins them.
LANEWISE_INLINE u32v zero_extend(u16v v) {
#if defined(__AVX512F__) && LANEWISE_LANES == 16
  return reinterpret_cast<u32v>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(v)));
#elif defined(__AVX2__) && LANEWISE_LANES == 8
  return reinterpret_cast<u32v>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(v)));
#else
  return __builtin_convertvector(v, u32v);
#endif
}

// For values that fit 16 bits: the saturating pack is then exact, and the compiler's own code masks
// every lane first.
LANEWISE_INLINE u16v truncate(u32v v) {
#if defined(__AVX2__) && LANEWISE_LANES == 8
  const __m256i wide = reinterpret_cast<__m256i>(v);
  return reinterpret_cast<u16v>(
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
  return __builtin_convertvector(v, u16v);
#endif
}

LANEWISE_INLINE f32v widen_bf16(u16v v) { return as_float(zero_extend(v) << 16); }

// Adding 0x7fff plus the lowest kept bit carries into it exactly when nearest-even rounds up.
// A NaN keeps its sign and top bits and becomes quiet: the addition could carry it into infinity.
// (AVX512-BF16 has an instruction that does all this but for subnormal numbers, which it makes
// zero.)
LANEWISE_INLINE u16v narrow_bf16(f32v v) {
#if defined(__AVX512BF16__) && LANEWISE_LANES == 16
  constexpr int kSubnormal = 0x20;
  const __m512 wide = reinterpret_cast<__m512>(v);
  if (__builtin_expect(_mm512_fpclass_ps_mask(wide, kSubnormal) == 0, 1))
    return reinterpret_cast<u16v>(_mm512_cvtneps_pbh(wide));
#endif
  const u32v bits = as_uint(v);
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32v quiet = (bits >> 16) | 0x0040u;
  return truncate(v == v ? rounded : quiet);
}

// The forms with a mask of ones: the plain ones warn of an uninitialised variable (GCC 12).
#if defined(__AVX512F__) && LANEWISE_LANES == 16
LANEWISE_INLINE f32v widen_f16(u16v v) {
  return reinterpret_cast<f32v>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(v)));
}
LANEWISE_INLINE u16v narrow_f16(f32v v) {
  return reinterpret_cast<u16v>(
      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && LANEWISE_LANES == 8
LANEWISE_INLINE f32v widen_f16(u16v v) {
  return reinterpret_cast<f32v>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(v)));
}
LANEWISE_INLINE u16v narrow_f16(f32v v) {
  return reinterpret_cast<u16v>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__) && LANEWISE_LANES == 4
LANEWISE_INLINE f32v widen_f16(u16v v) {
  return reinterpret_cast<f32v>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(v)));
}
LANEWISE_INLINE u16v narrow_f16(f32v v) {
  return reinterpret_cast<u16v>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v)));
}
#else
// Shifted into float32's fields, the exponent is short by 112; one exact multiplication by 2^112
// mends it and normalises the subnormals as well. Infinity and NaN get the full exponent.
LANEWISE_INLINE f32v widen_f16(u16v v) {
  const u32v h = zero_extend(v);
  const u32v sign = (h & 0x8000u) << 16;
  const u32v magnitude = (h & 0x7fffu) << 13;
  const f32v scaled = as_float(magnitude) * 0x1p112f;
  const u32v special = magnitude | 0x7f800000u;
  const u32v bits = (h & 0x7c00u) == 0x7c00u ? special : as_uint(scaled);
  return as_float(bits | sign);
}

// The sum with a power of two chosen so that float16's last bit is float32's last bit rounds to
// nearest even in hardware; subnormals use the smallest such power. After F. Giesen,
// "float->half variants" (the idea; the code is ours).
LANEWISE_INLINE u16v narrow_f16(f32v v) {
  const u32v bits = as_uint(v);
  const u32v sign = bits & 0x80000000u;
  const u32v magnitude = bits ^ sign;
  const u32v odd = (magnitude >> 13) & 1u;
  const u32v normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  const u32v subnormal = as_uint(as_float(magnitude) + 0.5f) - 0x3f000000u;
  u32v half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= 0x47800000u ? broadcast(uint32_t{0x7c00}) : half;
  half = magnitude > 0x7f800000u ? (0x7e00u | ((magnitude >> 13) & 0x3ffu)) : half;
  return truncate(half | (sign >> 16));
}
#endif

}  // namespace lanewise::LANEWISE_TARGET
