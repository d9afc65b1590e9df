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
#define LANEWISE_LAMBDA __attribute__((always_inline))

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

// The value, in a register from here on: the compiler would load it again for every use that an
// instruction can combine with the load.
LANEWISE_INLINE f32v in_register(f32v v) {
#if defined(__AVX512F__) && LANEWISE_LANES == 16
  __asm__("" : "+v"(v));
#elif defined(__x86_64__) && (LANEWISE_LANES == 4 || (defined(__AVX2__) && LANEWISE_LANES == 8))
  __asm__("" : "+x"(v));
#endif
  return v;
}

// Sums that shall stay in registers begin here: `= {}` may make GCC give them a place in memory
// too, and clear it with `rep stos`, whose start alone takes some 30 cycles.
template <int ROWS, int COLS>
LANEWISE_INLINE void clear(f32v (&sums)[ROWS][COLS]) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) sums[r][c] = f32v{};
}

LANEWISE_INLINE i32v lane_index() {
  i32v v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Lanes of `yes` where the mask is set (all ones), of `no` elsewhere.
LANEWISE_INLINE f32v select(i32v mask, f32v yes, f32v no) { return mask ? yes : no; }

// NaN in the second operand wins, as with the machine's own instruction: keep the running value
// first.
// (The instruction by name: the compiler makes comparison and blend of a constant bound.)
#if defined(__AVX512F__) && LANEWISE_LANES == 16
LANEWISE_INLINE f32v max(f32v a, f32v b) {
  return reinterpret_cast<f32v>(
      _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
LANEWISE_INLINE f32v min(f32v a, f32v b) {
  return reinterpret_cast<f32v>(
      _mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#elif defined(__AVX2__) && LANEWISE_LANES == 8
LANEWISE_INLINE f32v max(f32v a, f32v b) { return _mm256_max_ps(a, b); }
LANEWISE_INLINE f32v min(f32v a, f32v b) { return _mm256_min_ps(a, b); }
#elif defined(__SSE2__) && LANEWISE_LANES == 4
LANEWISE_INLINE f32v max(f32v a, f32v b) { return _mm_max_ps(a, b); }
LANEWISE_INLINE f32v min(f32v a, f32v b) { return _mm_min_ps(a, b); }
#else
LANEWISE_INLINE f32v max(f32v a, f32v b) { return a > b ? a : b; }
LANEWISE_INLINE f32v min(f32v a, f32v b) { return a < b ? a : b; }
#endif
LANEWISE_INLINE f32v abs(f32v a) { return as_float(as_int(a) & 0x7fffffff); }

// Folds the upper half of the lanes onto the lower with `f` until one is left. Halves are taken out
// by name: a loop over an array would go through memory.
template <class F>
LANEWISE_INLINE float fold(f32v v, F&& f) {
#if LANEWISE_LANES == 16
  const auto eight = f(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#elif LANEWISE_LANES == 8
  const auto eight = v;
#endif
#if LANEWISE_LANES >= 8
  const auto four = f(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                      __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
  const auto four = v;
#endif
  const auto two = f(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return f(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}

LANEWISE_INLINE float sum(f32v v) {
  return fold(v, [](auto a, auto b) LANEWISE_LAMBDA { return a + b; });
}

// A shuffle of a and b, whose lanes are numbered after a's, that repeats for every four lanes:
// picks below 4 take from a, from 4 on from b.
template <int I, int J, int K, int L>
LANEWISE_INLINE f32v shuffle_fours(f32v a, f32v b) {
  constexpr int kPick[4] = {I, J, K, L};
  i32v lanes;
  for (int i = 0; i < kLanes; ++i)
    lanes[i] = i / 4 * 4 + kPick[i % 4] % 4 + (kPick[i % 4] < 4 ? 0 : kLanes);
  return __builtin_shuffle(a, b, lanes);
}

// Of every two blocks of kBlock lanes the first (or the second): a's, b's, a's, …
template <int kBlock>
LANEWISE_INLINE f32v alternate_blocks(f32v a, f32v b, bool second) {
  i32v lanes;
  for (int i = 0; i < kLanes; ++i) {
    const int from_b = i / kBlock % 2;
    lanes[i] = i + (second - from_b) * kBlock + from_b * kLanes;
  }
  return __builtin_shuffle(a, b, lanes);
}

// Lane i = the sum of rows[i], in 21 operations at 8 lanes where as many single sums take 48.
LANEWISE_INLINE f32v sum_each(const f32v (&rows)[kLanes]) {
  f32v part[kLanes];
  const auto fold_pairs = [&](const f32v* from, int count) LANEWISE_LAMBDA {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      part[i] = shuffle_fours<0, 2, 4, 6>(from[2 * i], from[2 * i + 1]) +
                shuffle_fours<1, 3, 5, 7>(from[2 * i], from[2 * i + 1]);
  };
  fold_pairs(rows, kLanes / 2);
  fold_pairs(part, kLanes / 4);
#if LANEWISE_LANES == 16
  // Blocks of four would end in the order 0 2 1 3: the rows are folded crosswise.
  const f32v even =
      alternate_blocks<8>(part[0], part[2], false) + alternate_blocks<8>(part[0], part[2], true);
  const f32v odd =
      alternate_blocks<8>(part[1], part[3], false) + alternate_blocks<8>(part[1], part[3], true);
  return alternate_blocks<4>(even, odd, false) + alternate_blocks<4>(even, odd, true);
#elif LANEWISE_LANES == 8
  return alternate_blocks<4>(part[0], part[1], false) + alternate_blocks<4>(part[0], part[1], true);
#else
  return part[0];
#endif
}

LANEWISE_INLINE float max(f32v v) {
  return fold(v, [](auto a, auto b) LANEWISE_LAMBDA { return a > b ? a : b; });
}

}  // namespace lanewise::LANEWISE_TARGET
