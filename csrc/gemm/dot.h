// Products of few rows with weights that are contiguous in k, as nn.Linear stores them: dot
// products along k, nothing packed, every weight read once and widened in register.
#pragma once

#include "gemm/tile.h"

namespace lanewise::LANEWISE_TARGET {

// Rows of x at a time, and lines of the weight: 4 × 3 = 12 accumulators leave registers for the
// loads even where there are 16.
inline constexpr int kDotRows = 4;
inline constexpr int kDotLines = kRegisters == 32 ? 4 : 3;

// c[r · ldc + l] = Σ_i x[r · ldx + i] · w[l · ldw + i]
template <int ROWS, int LINES, class T>
void dot_tile(int64_t k, const float* x, int64_t ldx, const T* w, int64_t ldw, float* c,
              int64_t ldc) {
  f32v acc[ROWS][LINES] = {};
  const auto step = [&](int64_t i, auto... count) {
    f32v xv[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) xv[r] = load(x + r * ldx + i, count...);
#pragma GCC unroll 4
    for (int l = 0; l < LINES; ++l) {
      const f32v wv = load(w + l * ldw + i, count...);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) acc[r][l] += xv[r] * wv;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) step(i);
  if (i < k) step(i, static_cast<int>(k - i));
  for (int r = 0; r < ROWS; ++r)
    for (int l = 0; l < LINES; ++l) c[r * ldc + l] = sum(acc[r][l]);
}

// c[r · ldc + l] for all `rows` of x and `lines` of the weight.
template <class T>
void dot_products(int64_t k, const float* x, int64_t ldx, int rows, const T* w, int64_t ldw,
                  int lines, float* c, int64_t ldc) {
  const auto group = [&]<int LINES>(int l, Rows<LINES>) {
    for (int r = 0; r < rows; r += kDotRows) {
      with_rows<kDotRows>(rows - r < kDotRows ? rows - r : kDotRows, [&]<int ROWS>(Rows<ROWS>) {
        dot_tile<ROWS, LINES>(k, x + r * ldx, ldx, w + l * ldw, ldw, c + r * ldc + l, ldc);
      });
    }
  };
  int l = 0;
  for (; l + kDotLines <= lines; l += kDotLines) group(l, Rows<kDotLines>{});
  for (; l < lines; ++l) group(l, Rows<1>{});
}

}  // namespace lanewise::LANEWISE_TARGET
