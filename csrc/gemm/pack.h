// Packing: lines of a matrix (rows of A, columns of B) side by side in a panel, k outermost, so
// that the register tile reads memory in order.
#pragma once

#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

using f32x4 = float __attribute__((vector_size(16)));
using f32x4u = float __attribute__((vector_size(16), aligned(4), may_alias));
using i32x4 = int32_t __attribute__((vector_size(16)));

// dst[c · ld + r] = src[r][c] for a 4 × 4 block; 16-byte vectors on every target.
LANEWISE_INLINE void transpose4(const float* const src[4], int64_t c, float* dst, int64_t ld) {
  const f32x4 r0 = *reinterpret_cast<const f32x4u*>(src[0] + c);
  const f32x4 r1 = *reinterpret_cast<const f32x4u*>(src[1] + c);
  const f32x4 r2 = *reinterpret_cast<const f32x4u*>(src[2] + c);
  const f32x4 r3 = *reinterpret_cast<const f32x4u*>(src[3] + c);
  const f32x4 a = __builtin_shuffle(r0, r1, i32x4{0, 4, 1, 5});
  const f32x4 b = __builtin_shuffle(r0, r1, i32x4{2, 6, 3, 7});
  const f32x4 d = __builtin_shuffle(r2, r3, i32x4{0, 4, 1, 5});
  const f32x4 e = __builtin_shuffle(r2, r3, i32x4{2, 6, 3, 7});
  *reinterpret_cast<f32x4u*>(dst) = __builtin_shuffle(a, d, i32x4{0, 1, 4, 5});
  *reinterpret_cast<f32x4u*>(dst + ld) = __builtin_shuffle(a, d, i32x4{2, 3, 6, 7});
  *reinterpret_cast<f32x4u*>(dst + 2 * ld) = __builtin_shuffle(b, e, i32x4{0, 1, 4, 5});
  *reinterpret_cast<f32x4u*>(dst + 3 * ld) = __builtin_shuffle(b, e, i32x4{2, 3, 6, 7});
}

// Copies `count` elements, widened or narrowed.
template <class S, class D>
LANEWISE_INLINE void convert_row(const S* src, D* dst, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store(dst + i, load(src + i, rest), rest);
  }
}

// Lines that are contiguous in k, transposed into the panel four at a time; the last four may
// overlap the ones before, which is cheaper than doing fewer one by one. 16-bit lines are widened
// through a strip that stays in L1.
template <int WIDTH, class S>
void pack_contiguous_lines(const S* src, int64_t line_stride, int lines, int64_t k, float* panel) {
  constexpr int64_t kStrip = 128;
  float strip[4][kStrip];
  for (int next = 0; next < lines; next += 4) {
    const int line = next + 4 > lines && lines >= 4 ? lines - 4 : next;
    const int used = lines - line < 4 ? lines - line : 4;
    for (int64_t begin = 0; begin < k; begin += kStrip) {
      const int64_t count = k - begin < kStrip ? k - begin : kStrip;
      const float* rows[4];
      for (int r = 0; r < used; ++r) {
        const S* row = src + (line + r) * line_stride + begin;
        if constexpr (sizeof(S) == sizeof(float)) {
          rows[r] = row;
        } else {
          convert_row(row, strip[r], count);
          rows[r] = strip[r];
        }
      }
      float* const out = panel + begin * WIDTH + line;
      int64_t i = 0;
      if (used == 4)
        for (; i + 4 <= count; i += 4) transpose4(rows, i, out + i * WIDTH, WIDTH);
      for (; i < count; ++i)
        for (int r = 0; r < used; ++r) out[i * WIDTH + r] = rows[r][i];
    }
  }
  if (lines < WIDTH)
    for (int64_t i = 0; i < k; ++i)
      for (int l = lines; l < WIDTH; ++l) panel[i * WIDTH + l] = 0.0f;
}

// panel[i · WIDTH + l] = line l's element i, i < k; lines beyond `lines` are zero. `src` points to
// the first element of the first line; strides count elements.
template <int WIDTH, class S>
void pack_panel(const S* src, int64_t line_stride, int64_t k_stride, int lines, int64_t k,
                float* panel) {
  if (k_stride == 1 && lines > 1)
    return pack_contiguous_lines<WIDTH>(src, line_stride, lines, k, panel);
  for (int64_t i = 0; i < k; ++i, src += k_stride, panel += WIDTH) {
    if (line_stride == 1) {
      convert_row(src, panel, lines);
    } else {
      for (int l = 0; l < lines; ++l) panel[l] = to_float(src[l * line_stride]);
    }
    for (int l = lines; l < WIDTH; ++l) panel[l] = 0.0f;
  }
}

}  // namespace lanewise::LANEWISE_TARGET
