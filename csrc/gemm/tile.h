// The register tile: ROWS × (kTileVectors · kLanes) outputs held in registers while k runs.
//
// Budget, 16 registers (AVX2, SSE2): 6 rows × 2 vectors = 12 accumulators, 2 vectors of B, one
// broadcast of A, one spare. 32 registers (AVX-512, NEON): 14 × 2 = 28 accumulators and 2 of B; A
// is broadcast by the FMA's own memory operand (AVX-512) or by lane. Each k costs ROWS · 2 FMAs
// against ROWS + 2 loads, so the FMA units bind, not the load ports; 12 chains cover the FMA
// latency (4–5 cycles on two units).
#pragma once

#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kTileRows = kRegisters == 32 ? 14 : 6;
inline constexpr int kTileVectors = 2;
inline constexpr int kTileCols = kTileVectors * kLanes;

// acc[r][:] += Σ a[i·kTileRows + r] · b[i·ldb + :] over i < k. `a` is a packed panel.
template <int ROWS, class B>
LANEWISE_INLINE void multiply_tile(int64_t k, const float* a, const B* b, int64_t ldb,
                                   f32v (&acc)[ROWS][kTileVectors]) {
  for (int64_t i = 0; i < k; ++i, a += kTileRows, b += ldb) {
    f32v bv[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) bv[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const f32v av = broadcast(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) acc[r][v] += av * bv[v];
    }
  }
}

// c[r·ldc + :] = (accumulate ? c : 0) + a · b, whole tiles of kTileCols columns. What is there
// already is added last: a sum of short sums errs less than one long chain.
template <int ROWS, class B>
void tile(int64_t k, const float* a, const B* b, int64_t ldb, float* c, int64_t ldc,
          bool accumulate) {
  f32v acc[ROWS][kTileVectors] = {};
  multiply_tile<ROWS>(k, a, b, ldb, acc);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      float* at = c + r * ldc + v * kLanes;
      store(at, accumulate ? load(at) + acc[r][v] : acc[r][v]);
    }
}

// Calls f(Rows<rows>{}) for a run-time row count, 1 ≤ rows ≤ kTileRows.
template <int N>
struct Rows {
  static constexpr int value = N;
};
template <int N = kTileRows, class F>
LANEWISE_INLINE void with_rows(int rows, F&& f) {
  if constexpr (N > 1) {
    if (rows < N) return with_rows<N - 1>(rows, static_cast<F&&>(f));
  }
  f(Rows<N>{});
}

// Rows per tile that cut m rows into the fewest tiles of nearly equal height: 16 rows are 8 + 8,
// not 14 + 2, since a low tile loads as much of B as a high one.
inline int balanced_rows(int64_t m) {
  if (m <= 0) return 1;
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  return static_cast<int>((m + tiles - 1) / tiles);
}

}  // namespace lanewise::LANEWISE_TARGET
