// Loads and stores of whole and partial vectors, converting 16-bit elements on the way.
//
// A partial access touches exactly `count` elements: the next one may lie on an unmapped page.
#pragma once

#include "simd/convert.h"

namespace lanewise::LANEWISE_TARGET {

LANEWISE_INLINE f32v load(const float* p) { return *reinterpret_cast<const unaligned::f32v*>(p); }
LANEWISE_INLINE void store(float* p, f32v v) { *reinterpret_cast<unaligned::f32v*>(p) = v; }

// The lower half of the lanes from one place, the upper half from another.
#if LANEWISE_LANES >= 8
// (By name: the compiler's own code loads both and joins them.)
LANEWISE_INLINE f32v load_halves(const void* low, const void* high) {
#if defined(__AVX512F__) && LANEWISE_LANES == 16
  const __m512 lower = _mm512_castps256_ps512(_mm256_loadu_ps(static_cast<const float*>(low)));
  return reinterpret_cast<f32v>(
      _mm512_maskz_insertf32x8(0xffff, lower, _mm256_loadu_ps(static_cast<const float*>(high)), 1));
#elif defined(__AVX2__) && LANEWISE_LANES == 8
  const __m256 lower = _mm256_castps128_ps256(_mm_loadu_ps(static_cast<const float*>(low)));
  return _mm256_insertf128_ps(lower, _mm_loadu_ps(static_cast<const float*>(high)), 1);
#else
  using half = float __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  const auto a = *static_cast<const half*>(low), b = *static_cast<const half*>(high);
#if LANEWISE_LANES == 16
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#endif
#endif
}
#endif

LANEWISE_INLINE u16v load_u16(const void* p) { return *static_cast<const unaligned::u16v*>(p); }
LANEWISE_INLINE void store_u16(void* p, u16v v) { *static_cast<unaligned::u16v*>(p) = v; }

LANEWISE_INLINE f32v load(const bf16* p) { return widen_bf16(load_u16(p)); }
LANEWISE_INLINE f32v load(const f16* p) { return widen_f16(load_u16(p)); }
LANEWISE_INLINE void store(bf16* p, f32v v) { store_u16(p, narrow_bf16(v)); }
LANEWISE_INLINE void store(f16* p, f32v v) { store_u16(p, narrow_f16(v)); }

// The first `count` < kLanes elements; the other lanes are zero. Masked accesses where the machine
// has them (lanes masked off do not fault), else pieces of 8, 4 and 2 bytes.
namespace parts {

template <class T>
LANEWISE_INLINE T load_as(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// Up to four 16-bit elements as the integer that they make.
LANEWISE_INLINE uint64_t load_quad(const uint16_t* p, int count) {
  if (count <= 0) return 0;
  if (count >= 4) return load_as<uint64_t>(p);
  if (count == 1) return *p;
  const uint64_t two = load_as<uint32_t>(p);
  return count == 2 ? two : two | uint64_t{p[2]} << 32;
}

LANEWISE_INLINE void store_quad(uint16_t* p, uint64_t quad, int count) {
  if (count <= 0) return;
  if (count >= 4) return void(__builtin_memcpy(p, &quad, 8));
  if (count & 2) {
    __builtin_memcpy(p, &quad, 4);
    quad >>= 32;
    p += 2;
  }
  if (count & 1) *p = static_cast<uint16_t>(quad);
}

}  // namespace parts

#if defined(__AVX512F__) && LANEWISE_LANES == 16
LANEWISE_INLINE f32v load(const float* p, int count) {
  return reinterpret_cast<f32v>(_mm512_maskz_loadu_ps((1u << count) - 1, p));
}
LANEWISE_INLINE void store(float* p, f32v v, int count) {
  _mm512_mask_storeu_ps(p, (1u << count) - 1, reinterpret_cast<__m512>(v));
}
LANEWISE_INLINE u16v load_u16(const void* p, int count) {
  return reinterpret_cast<u16v>(_mm256_maskz_loadu_epi16((1u << count) - 1, p));
}
LANEWISE_INLINE void store_u16(void* p, u16v v, int count) {
  _mm256_mask_storeu_epi16(p, (1u << count) - 1, reinterpret_cast<__m256i>(v));
}
#else
#if defined(__AVX2__)
LANEWISE_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LANEWISE_INLINE f32v load(const float* p, int count) {
  f32v v;
  for (int i = 0; i < kLanes; i += 8) {
    const __m256 eight = _mm256_maskload_ps(p + i, first_lanes(count - i));
    __builtin_memcpy(reinterpret_cast<char*>(&v) + 4 * i, &eight, sizeof eight);
  }
  return v;
}
LANEWISE_INLINE void store(float* p, f32v v, int count) {
  for (int i = 0; i < kLanes; i += 8) {
    __m256 eight;
    __builtin_memcpy(&eight, reinterpret_cast<char*>(&v) + 4 * i, sizeof eight);
    _mm256_maskstore_ps(p + i, first_lanes(count - i), eight);
  }
}
#else
LANEWISE_INLINE f32v load(const float* p, int count) {
  f32v v = {};
  for (int i = 0; i < kLanes && i < count; ++i) v[i] = p[i];
  return v;
}
LANEWISE_INLINE void store(float* p, f32v v, int count) {
  for (int i = 0; i < kLanes && i < count; ++i) p[i] = v[i];
}
#endif
LANEWISE_INLINE u16v load_u16(const void* p, int count) {
  const auto* elements = static_cast<const uint16_t*>(p);
  uint64_t quads[kLanes / 4];
  for (int i = 0; i < kLanes / 4; ++i) quads[i] = parts::load_quad(elements + 4 * i, count - 4 * i);
  return parts::load_as<u16v>(quads);
}
LANEWISE_INLINE void store_u16(void* p, u16v v, int count) {
  auto* elements = static_cast<uint16_t*>(p);
  uint64_t quads[kLanes / 4];
  __builtin_memcpy(quads, &v, sizeof quads);
  for (int i = 0; i < kLanes / 4; ++i) parts::store_quad(elements + 4 * i, quads[i], count - 4 * i);
}
#endif

LANEWISE_INLINE f32v load(const bf16* p, int count) { return widen_bf16(load_u16(p, count)); }
LANEWISE_INLINE f32v load(const f16* p, int count) { return widen_f16(load_u16(p, count)); }
LANEWISE_INLINE void store(bf16* p, f32v v, int count) { store_u16(p, narrow_bf16(v), count); }
LANEWISE_INLINE void store(f16* p, f32v v, int count) { store_u16(p, narrow_f16(v), count); }

LANEWISE_INLINE float to_float(float x) { return x; }
LANEWISE_INLINE float to_float(bf16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}
LANEWISE_INLINE float to_float(f16 x) { return widen_f16(u16v{x.bits})[0]; }

template <class T>
LANEWISE_INLINE T from_float(float x) {
  T out;
  store(&out, broadcast(x), 1);
  return out;
}
template <>
LANEWISE_INLINE float from_float<float>(float x) {
  return x;
}

// Calls f with a value of the element type that `dtype` names: one instantiation per dtype.
template <class F>
LANEWISE_INLINE void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
  }
}

}  // namespace lanewise::LANEWISE_TARGET
