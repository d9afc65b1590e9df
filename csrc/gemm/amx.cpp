// Matrix products of the target `amx`: bfloat16 by bfloat16 in tiles, all others as the target that
// it stands on multiplies them.
#include "dispatch/parallel.h"
#include "gemm/amx_blocked.h"
#include "gemm/kernel.h"

namespace lanewise::LANEWISE_BASE {
void gemm(const GemmParams& p);
}  // namespace lanewise::LANEWISE_BASE

namespace lanewise::LANEWISE_TARGET {

namespace {

Layout layout_of(const RightRef& b) {
  if (b.packed) return Layout::packed;
  if (b.matrix.row_stride == 1) return Layout::columns;
  return b.matrix.col_stride == 1 ? Layout::rows : Layout::strided;
}

// What both right operands have in common.
Layout layout_of(const GemmParams& p) {
  const Layout right = layout_of(p.b);
  return p.gated && layout_of(p.gate) != right ? Layout::strided : right;
}

// Rows up to which the other target's dot products and scaled rows are as fast: memory binds, and
// they pack nothing.
constexpr int64_t kMostDotRows = 2, kMostAxpyRows = 4;
// Multiply-adds of a product below which to set up the tiles costs more than they bring.
constexpr int64_t kSmallWork = 1 << 12;

bool multiplies_tiles(const GemmParams& p) {
  const auto holds = [](const MatrixRef& m) { return m.dtype == DType::bf16; };
  if (!holds(p.a) || !holds(p.b.matrix) || (p.gated && !holds(p.gate.matrix))) return false;
  if (p.gated && p.gate.packed != p.b.packed) return false;
  const Layout right = layout_of(p);
  if (right == Layout::packed) return true;  // a row has the same bits beside any number of others
  const int64_t few = right == Layout::rows ? kMostAxpyRows : kMostDotRows;
  return p.m > few && p.m * p.n * p.k >= kSmallWork;
}

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 18;

AmxPlan plan_of(const GemmParams& p, int threads) {
  const GemmShape shape = {.m = p.m,
                           .n = p.n,
                           .k = p.k,
                           .right = layout_of(p),
                           .left_bytes = 2,
                           .right_bytes = 2,
                           .gated = p.gated};
  return plan_amx(shape, p.a.col_stride == 1, kTileCols, caches(), threads);
}

// One thread's share of a product.
void multiply(const GemmParams& p, const AmxPlan& plan, int thread) {
  const Share pairs(plan.pairs, thread % plan.row_threads, plan.row_threads);
  const Share panels(plan.panels, thread / plan.row_threads, plan.col_threads);
  if (pairs.begin < pairs.end && panels.begin < panels.end)
    AmxProduct(p, plan).multiply(pairs, panels);
}

// The product of one member of a batch.
GemmParams member(const GemmParams& p, int64_t i) {
  GemmParams one = p;
  one.batch = 1;
  one.a.data = static_cast<const bf16*>(p.a.data) + p.a_offsets[i];
  one.b.matrix.data = static_cast<const bf16*>(p.b.matrix.data) + p.b_offsets[i];
  one.out = static_cast<char*>(p.out) + p.out_offsets[i] * (p.out_dtype == DType::f32 ? 4 : 2);
  return one;
}

}  // namespace

void gemm(const GemmParams& p) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  if (!multiplies_tiles(p)) return LANEWISE_BASE::gemm(p);
  const double work = static_cast<double>(p.m) * p.n * p.k;
  const auto threads_for = [&](double all) {
    return all < kSerialWork || in_parallel() ? 1 : p.threads;
  };
  if (!p.a_offsets) {
    const int threads = threads_for(work);
    const AmxPlan plan = plan_of(p, threads);
    return parallel(threads, [&](int t, int n) {
      const TileRegisters tiles(plan.height);
      if (n == threads) return multiply(p, plan, t);
      const AmxPlan own = plan_of(p, n);
      multiply(p, own, t);
    });
  }
  // Whole products per thread where they divide evenly enough, otherwise all threads on each.
  const bool whole = p.batch % p.threads == 0 || p.batch >= 8 * p.threads;
  const int threads = whole ? 1 : threads_for(work);
  const AmxPlan plan = plan_of(p, threads);
  if (whole)
    return parallel_ranges(p.batch, 1, threads_for(work * p.batch),
                           [&](int64_t begin, int64_t end) {
                             const TileRegisters tiles(plan.height);
                             for (int64_t i = begin; i < end; ++i) multiply(member(p, i), plan, 0);
                           });
  parallel(threads, [&](int t, int n) {
    const TileRegisters tiles(plan.height);
    const AmxPlan own = n == threads ? plan : plan_of(p, n);
    for (int64_t i = 0; i < p.batch; ++i) multiply(member(p, i), own, t);
  });
}

}  // namespace lanewise::LANEWISE_TARGET
