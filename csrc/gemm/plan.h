// How one matrix product is cut into cache-sized blocks and among threads: a pure function.
//
//   for each block of nc columns            B packed, [k × nc], shared by all threads
//     for each block of mc rows of a thread
//       for each block of kc                A packed, [mc × kc], stays in L2
//         for each panel of B               [kc × tile columns], stays in L1 while the tiles pass
//           for each tile of rows           accumulates in registers
#pragma once

#include "dispatch/cpu.h"

namespace lanewise {

struct GemmShape {
  int64_t m, n, k;
  bool lines_contiguous;  // the right operand is unpacked and contiguous in k, as weights are
};

struct TileShape {
  int rows, cols;
};

struct GemmPlan {
  bool dot;  // too few rows to repay packing: dot products along k, nothing packed
  int row_threads, col_threads;
  int64_t mc, nc, kc;
};

namespace plan_detail {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// Rows up to which dot products, at about half the FMA rate, beat packing B first (measured at
// 3072 × 768: equal at some 40 rows in float32 and 60 in bfloat16).
inline constexpr int64_t kMostDotRows = 32;
// A panel of B of this depth fits L1 at 16 columns (AVX2) and streams from L2 at 32. Deeper panels
// save passes over C; shallower ones make shorter chains of sums, whose error grows with the depth.
inline constexpr int64_t kDepth = 512;
// The shared panels: as much of L3 as one process may count on.
inline constexpr int64_t kSharedBytes = 8 << 20;

}  // namespace plan_detail

inline GemmPlan plan_gemm(const GemmShape& s, const TileShape& tile, const Caches& caches,
                          int threads) {
  using namespace plan_detail;
  GemmPlan plan{};
  plan.dot = s.lines_contiguous && s.m <= kMostDotRows;

  // The grid of threads whose busiest member has the fewest tiles; rows first, since threads that
  // share rows pack the same rows of A.
  const int64_t row_tiles = divide_up(s.m, tile.rows), panels = divide_up(s.n, tile.cols);
  int64_t fewest = INT64_MAX;
  for (int rows = threads; rows >= 1; --rows) {
    if (threads % rows) continue;
    const int cols = threads / rows;
    const int64_t busiest = divide_up(row_tiles, rows) * divide_up(panels, cols);
    if (busiest < fewest) {
      fewest = busiest;
      plan.row_threads = rows;
      plan.col_threads = cols;
    }
  }
  if (plan.dot) {
    plan.row_threads = 1;
    plan.col_threads = threads;
  }

  const int64_t depth_blocks = divide_up(s.k ? s.k : 1, kDepth);
  plan.kc = divide_up(s.k ? s.k : 1, depth_blocks);
  const int64_t rows_in_l2 = caches.l2 / 2 / (plan.kc * 4);
  plan.mc = clamp(rows_in_l2 / tile.rows, 1, INT64_MAX) * tile.rows;
  const int64_t cols_shared = kSharedBytes / plan.col_threads / ((s.k ? s.k : 1) * 4);
  plan.nc = clamp(cols_shared / tile.cols, 8, divide_up(2048, tile.cols)) * tile.cols;
  return plan;
}

}  // namespace lanewise
