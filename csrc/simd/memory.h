// Loads and stores of whole and partial vectors, converting 16-bit elements on the way.
//
// A partial access touches exactly `count` elements: the next one may lie on an unmapped page.
#pragma once

#include "simd/convert.h"

namespace lanewise::LANEWISE_TARGET {

LANEWISE_INLINE f32v load(const float* p) { return *reinterpret_cast<const unaligned::f32v*>(p); }
LANEWISE_INLINE void store(float* p, f32v v) { *reinterpret_cast<unaligned::f32v*>(p) = v; }

LANEWISE_INLINE u16v load_u16(const void* p) { return *static_cast<const unaligned::u16v*>(p); }
LANEWISE_INLINE void store_u16(void* p, u16v v) { *static_cast<unaligned::u16v*>(p) = v; }

LANEWISE_INLINE f32v load(const bf16* p) { return widen_bf16(load_u16(p)); }
LANEWISE_INLINE f32v load(const f16* p) { return widen_f16(load_u16(p)); }
LANEWISE_INLINE void store(bf16* p, f32v v) { store_u16(p, narrow_bf16(v)); }
LANEWISE_INLINE void store(f16* p, f32v v) { store_u16(p, narrow_f16(v)); }

// The first `count` < kLanes elements; the other lanes are zero.
template <class T>
LANEWISE_INLINE f32v load(const T* p, int count) {
  T lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
LANEWISE_INLINE void store(T* p, f32v v, int count) {
  T lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

LANEWISE_INLINE float to_float(float x) { return x; }
LANEWISE_INLINE float to_float(bf16 x) { return widen_bf16(u16v{x.bits})[0]; }
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
