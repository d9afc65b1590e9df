// How a product of bfloat16 is cut for AMX, into cache-sized blocks and among threads: a pure
// function.
//
// Of the two operands one is read as rows, contiguous in k, the other as panels of pairs. A weight
// of nn.Linear [n, k] can be either: as rows it is read where it lies, x is packed and C comes out
// transposed; as panels it is packed, which costs as much as to multiply it with 26 rows.
#pragma once

#include "gemm/plan.h"

namespace lanewise {

struct AmxPlan {
  bool swapped;           // the columns of B are the rows of the tiles, the rows of A their columns
  int height;             // rows of every tile: the last may begin before the one above it ends
  int width;              // columns of a panel
  int64_t rows, cols;     // of the product, or of its transpose where swapped
  int64_t pairs, panels;  // of tiles along the rows; along the columns
  int row_threads, col_threads;
  int64_t block_pairs;  // whose rows stay in L2
  bool keeps_panels;    // packed once for all blocks of rows
  // Steps of k in one chain of sums, and of those in a piece of panel that stays in L1.
  int64_t chain, piece;
};

inline AmxPlan plan_amx(const GemmShape& s, bool rows_in_place, int width, const Caches& caches,
                        int threads) {
  using namespace plan_detail;
  constexpr int kRows = 16, kDepth = 32;
  // Steps. The machine sums the elements of one apart before it adds them to the tile.
  constexpr int64_t kChain = 384;
  // Steps: 16 KiB of a panel, which stay in L1 while as much of each pair's rows passes.
  constexpr int64_t kPiece = 8;
  // Times the size of L2: panels that are packed once for all blocks of rows, and lie in L3.
  constexpr int64_t kKept = 4;
  AmxPlan plan{};
  const int64_t k = most(s.k, 1);
  // To transpose a vector of sums costs as much as to pack three of elements.
  plan.swapped =
      s.right == Layout::columns && s.m * k * 2 <= caches.l2 / 2 && s.m * (k + 3 * s.n) < s.n * k;
  plan.rows = plan.swapped ? s.n : s.m;
  plan.cols = plan.swapped ? s.m : s.n;
  plan.height = static_cast<int>(divide_up(plan.rows, divide_up(plan.rows, kRows)));
  plan.width = plan.swapped && plan.cols <= kRows ? kRows : width;
  plan.pairs = divide_up(plan.rows, 2 * plan.height);
  plan.panels = divide_up(plan.cols, plan.width);
  const int64_t steps = divide_up(k, kDepth);
  plan.chain = divide_up(steps, divide_up(steps, kChain));

  // What the busiest thread does, in products of a pair of tiles with a panel.
  constexpr double kPack = 0.8;  // to pack one or the other
  double least_cost = 0;
  for (int rows = 1; rows <= threads; ++rows) {
    if (threads % rows) continue;
    const double pairs = static_cast<double>(divide_up(plan.pairs, rows));
    const double panels = static_cast<double>(divide_up(plan.panels, threads / rows));
    const double cost = pairs * panels + (s.right == Layout::packed ? 0 : panels * kPack) +
                        (rows_in_place ? 0 : pairs * kPack);
    if (rows > 1 && cost >= least_cost) continue;
    least_cost = cost;
    plan.row_threads = rows;
    plan.col_threads = threads / rows;
  }

  // Rows stay in L2 while they meet one panel after the other.
  const int64_t own = most(divide_up(plan.pairs, plan.row_threads), 1);
  const int64_t pair_bytes = 2 * plan.height * k * 2;
  const int64_t fit = most(caches.l2 / 2 / pair_bytes, 1);
  plan.block_pairs = divide_up(own, divide_up(own, fit));
  const int64_t panel_bytes = plan.width * k * 2;
  const int64_t own_panels = divide_up(plan.panels, plan.col_threads);
  plan.keeps_panels =
      plan.swapped || (plan.block_pairs < own && own_panels * panel_bytes <= kKept * caches.l2);
  plan.piece =
      plan.block_pairs > 1 ? divide_up(plan.chain, divide_up(plan.chain, kPiece)) : plan.chain;
  return plan;
}

}  // namespace lanewise
