// Width-generic float32 lanes over the compiler's vector types.
//
// One source serves 4, 8 and 16 lanes; the compiler lowers a vector wider than the machine's to
// several registers, which is how the 16-lane build is tested on an 8-lane machine. Everything
// lives in the namespace of its target, so that no inline code of one instruction set can be
// linked in place of another's.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "simd/types.h"

#define LANEWISE_INLINE inline __attribute__((always_inline))

#ifndef LANEWISE_LANES
#if defined(__AVX512F__)
#define LANEWISE_LANES 16
#elif defined(__AVX2__)
#define LANEWISE_LANES 8
#else
#define LANEWISE_LANES 4
#endif
#endif

// Vector registers the target offers: what the tiles of gemm and attention are sized by.
#if defined(__AVX512F__) || defined(__aarch64__) || LANEWISE_LANES == 16
#define LANEWISE_REGISTERS 32
#else
#define LANEWISE_REGISTERS 16
#endif

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kLanes = LANEWISE_LANES;
inline constexpr int kRegisters = LANEWISE_REGISTERS;

using f32v = float __attribute__((vector_size(kLanes * 4)));
using i32v = int32_t __attribute__((vector_size(kLanes * 4)));
using u32v = uint32_t __attribute__((vector_size(kLanes * 4)));
using u16v = uint16_t __attribute__((vector_size(kLanes * 2)));

namespace unaligned {
using f32v = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using u16v = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
}  // namespace unaligned

// A broadcast is written out: `f32v{} + x` would compile to an addition.
#if LANEWISE_LANES == 16
#define LANEWISE_REPEAT(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#elif LANEWISE_LANES == 8
#define LANEWISE_REPEAT(x) {x, x, x, x, x, x, x, x}
#else
#define LANEWISE_REPEAT(x) {x, x, x, x}
#endif

LANEWISE_INLINE f32v broadcast(float x) { return f32v LANEWISE_REPEAT(x); }
LANEWISE_INLINE i32v broadcast(int32_t x) { return i32v LANEWISE_REPEAT(x); }
LANEWISE_INLINE u32v broadcast(uint32_t x) { return u32v LANEWISE_REPEAT(x); }

LANEWISE_INLINE f32v as_float(i32v v) { return reinterpret_cast<f32v>(v); }
LANEWISE_INLINE f32v as_float(u32v v) { return reinterpret_cast<f32v>(v); }
LANEWISE_INLINE i32v as_int(f32v v) { return reinterpret_cast<i32v>(v); }
LANEWISE_INLINE u32v as_uint(f32v v) { return reinterpret_cast<u32v>(v); }

LANEWISE_INLINE i32v lane_index() {
  i32v v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Lanes of `yes` where the mask is set (all ones), of `no` elsewhere.
LANEWISE_INLINE f32v select(i32v mask, f32v yes, f32v no) { return mask ? yes : no; }

// NaN in the second operand wins, as with the machine's own instruction: keep the running value
// first.
LANEWISE_INLINE f32v max(f32v a, f32v b) { return a > b ? a : b; }
LANEWISE_INLINE f32v min(f32v a, f32v b) { return a < b ? a : b; }
LANEWISE_INLINE f32v abs(f32v a) { return as_float(as_int(a) & 0x7fffffff); }

// By halves, within registers: a detour over memory would cost a store's latency.
LANEWISE_INLINE float sum(f32v v) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    v += __builtin_shuffle(v, lane_index() ^ width);
  return v[0];
}

LANEWISE_INLINE float max(f32v v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace lanewise::LANEWISE_TARGET
