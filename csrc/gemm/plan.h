// How one matrix product is cut into cache-sized blocks and among threads: a pure function.
//
//   a grid of threads: each has some rows of A and some columns of B, and works alone
//   for each block of nc columns            its sums, [mc × nc], wait in L2 or L3 where k is cut
//     for each block of mc rows
//       for each block of kc                A packed, [mc × kc], stays in L2
//         for each strip of B, 1-3 panels
//           for each chain of the depth     packed or widened where need be, [chain × columns]
//             for each tile of rows         accumulates in registers
#pragma once

#include "dispatch/cpu.h"

namespace lanewise {

// How the right operand lies in memory: panels of pack_weight, or a matrix that is contiguous in k
// (as weights of nn.Linear are), along n, or neither.
enum class Layout : int { packed, columns, rows, strided };

struct GemmShape {
  int64_t m, n, k;
  Layout right;
  int64_t left_bytes = 4;   // of an element of A as it is packed
  int64_t right_bytes = 4;  // of an element of the right operand as it lies in memory
  bool gated = false;
};

struct TileShape {
  int rows, cols;
};

// Few rows do not repay packing: dot products along k, or sums of scaled rows.
enum class Method : int { blocked, dot, axpy };

struct GemmPlan {
  Method method;
  int row_threads, col_threads;
  int64_t mc, nc, kc;
  int64_t chain;  // of k that is summed in registers before it is added to what there is
  bool far;       // a thread's part of the right operand does not stay in its L2
};

namespace plan_detail {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows up to which dot products beat packing B first (measured at 3072 × 768: equal from 16 rows
// on at 16 registers, up to 32 at 32).
inline constexpr int64_t kMostDotRows = 24;
// Rows up to which sums of scaled rows do: each is loaded and stored for every four k.
inline constexpr int64_t kMostAxpyRows = 4;
// A panel of B of this depth and a tile of A lie in L1 together at 16 columns (AVX2), and stream
// from L2 at 32. Deeper panels save passes over the sums; shallower ones make shorter chains, whose
// rounding errors grow with the depth.
inline constexpr int64_t kDepth = 384;
// Sums of one thread that wait for the next block of k, or for their gate.
inline constexpr int64_t kSumsBytes = 2 << 20;

// What the busiest thread of a grid does for one k, in vectors multiplied or moved: its tiles, and
// the panels that it packs for each of its blocks.
inline double grid_cost(const GemmShape& s, const TileShape& tile, int64_t mc, int rows, int cols) {
  constexpr double kPackColumn = 0.5, kPackRow = 0.5;  // of a multiplication, each element
  const double tiles = static_cast<double>(divide_up(divide_up(s.m, tile.rows), rows));
  const double panels = static_cast<double>(divide_up(divide_up(s.n, tile.cols), cols));
  const double passes = static_cast<double>(divide_up(divide_up(s.m, rows), mc));
  const double columns =
      s.right == Layout::packed ? 0.0 : panels * tile.cols * passes * kPackColumn;
  return tiles * panels * tile.rows * tile.cols + columns + tiles * tile.rows * kPackRow;
}

}  // namespace plan_detail

inline GemmPlan plan_gemm(const GemmShape& s, const TileShape& tile, const Caches& caches,
                          int threads) {
  using namespace plan_detail;
  GemmPlan plan{};
  if (s.right == Layout::columns && s.m <= kMostDotRows) plan.method = Method::dot;
  if (s.right == Layout::rows && s.m <= kMostAxpyRows) plan.method = Method::axpy;

  const int64_t k = most(s.k, 1), depth = kDepth * 4 / s.left_bytes;
  plan.chain = divide_up(divide_up(k, divide_up(k, depth)), 2) * 2;  // even: bfloat16 has pairs
  // Where all of A stays in L2, panels are best read from end to end, and no sums wait.
  const int64_t a_bytes = divide_up(s.m, tile.rows) * tile.rows * k * s.left_bytes;
  plan.kc = a_bytes <= caches.l2 / 2 ? k : plan.chain;
  const int64_t rows_in_l2 = caches.l2 / 2 / (plan.kc * s.left_bytes);
  const int64_t panel_row = tile.cols * 4 * (s.gated ? 2 : 1);  // bytes of the sums of a row
  plan.mc = most(least(rows_in_l2, kSumsBytes / panel_row) / tile.rows, 1) * tile.rows;

  plan.far = s.n * s.k > caches.l2 / s.right_bytes * threads;

  plan.row_threads = 1;
  plan.col_threads = threads;
  if (plan.method == Method::blocked) {
    double least_cost = 0;
    for (int rows = 1; rows <= threads; ++rows) {
      if (threads % rows) continue;
      const double cost = grid_cost(s, tile, plan.mc, rows, threads / rows);
      if (rows > 1 && cost >= least_cost) continue;
      least_cost = cost;
      plan.row_threads = rows;
      plan.col_threads = threads / rows;
    }
  }

  // Blocks of rows of equal height, and as many columns as their sums allow.
  const int64_t own_rows = most(divide_up(s.m, plan.row_threads), 1);
  plan.mc = divide_up(divide_up(own_rows, divide_up(own_rows, plan.mc)), tile.rows) * tile.rows;
  const int64_t own_panels = most(divide_up(divide_up(s.n, tile.cols), plan.col_threads), 1);
  const int64_t panels = plan.kc >= s.k ? own_panels : kSumsBytes / (plan.mc * panel_row);
  plan.nc = most(least(panels, own_panels), 1) * tile.cols;
  return plan;
}

}  // namespace lanewise
