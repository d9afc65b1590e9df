// Products of few rows with a right operand that is contiguous along n: every row of it, scaled by
// an element of x, is added to the sums (the axpy form of a matrix-vector product). Nothing is
// packed, and memory is read along whole rows.
#pragma once

#include "gemm/tile.h"

namespace lanewise::LANEWISE_TARGET {

// Columns at a time, whole vectors: as many as let the sums of all rows of x stay in L1, since
// memory is read best in long pieces (a page is 1024 of them).
inline int64_t axpy_cols(int64_t rows) { return 4096 / rows / kTileCols * kTileCols; }
// Rows of the right operand that share one load and store of a sum.
inline constexpr int kAxpyDepth = 4;

// sums[r · ld + c] += Σ_d x[r · ldx + d] · b[d · ldb + c], d < DEPTH, c < cols. Fetches the
// rows that come next: the machine's own prefetchers start anew on each.
template <int DEPTH, class T>
void axpy_rows(int rows, const float* x, int64_t ldx, const T* b, int64_t ldb, int64_t cols,
               float* sums, int64_t ld) {
  const auto step = [&](int64_t c, auto... count) LANEWISE_LAMBDA {
    f32v bv[DEPTH];
#pragma GCC unroll 4
    for (int d = 0; d < DEPTH; ++d) {
      bv[d] = load(b + d * ldb + c, count...);
      __builtin_prefetch(b + (d + kAxpyDepth) * ldb + c, 0, 2);
    }
    for (int r = 0; r < rows; ++r) {
      float* to = sums + r * ld + c;
      f32v s = load(to);
#pragma GCC unroll 4
      for (int d = 0; d < DEPTH; ++d) s += broadcast(x[r * ldx + d]) * bv[d];
      store(to, s);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) step(c);
  if (c < cols) step(c, static_cast<int>(cols - c));
}

// totals[r · ld + c] = Σ_i x[r · ldx + i] · b[i · ldb + c], i < k, in chains of `chain`;
// `part` has as much room as `totals`, rows · ld.
template <class T>
void axpy_products(int64_t k, int64_t chain, int rows, const float* x, int64_t ldx, const T* b,
                   int64_t ldb, int64_t cols, float* part, float* totals, int64_t ld) {
  const int64_t size = rows * ld;
  for (int64_t i = 0; i < size; ++i) totals[i] = 0.0f;
  for (int64_t begin = 0; begin < k; begin += chain) {
    const int64_t end = begin + chain < k ? begin + chain : k;
    for (int64_t i = 0; i < size; ++i) part[i] = 0.0f;
    int64_t i = begin;
    for (; i + kAxpyDepth <= end; i += kAxpyDepth)
      axpy_rows<kAxpyDepth>(rows, x + i, ldx, b + i * ldb, ldb, cols, part, ld);
    for (; i < end; ++i) axpy_rows<1>(rows, x + i, ldx, b + i * ldb, ldb, cols, part, ld);
    for (int64_t j = 0; j < size; ++j) totals[j] += part[j];
  }
}

}  // namespace lanewise::LANEWISE_TARGET
