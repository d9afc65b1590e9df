#include "gemm/kernel.h"

#include "dispatch/cpu.h"
#include "dispatch/parallel.h"
#include "dispatch/scratch.h"
#include "gemm/dot.h"
#include "gemm/epilogue.h"
#include "gemm/pack.h"
#include "gemm/plan.h"
#include "gemm/tile.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

using plan_detail::divide_up;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

float* floats(Scratch slot, int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

template <class T>
const T* at(const MatrixRef& m, int64_t row, int64_t col) {
  return static_cast<const T*>(m.data) + row * m.row_stride + col * m.col_stride;
}

// A share of [0, count) for thread t of n, pieces equal to within one.
struct Share {
  int64_t begin, end;
  Share(int64_t begin, int64_t end) : begin(begin), end(end) {}
  Share(int64_t count, int t, int n) : begin(count * t / n), end(count * (t + 1) / n) {}
};

// Panels of a right operand as the tiles read them: [panel][k][kTileCols] of T.
template <class T>
struct Panels {
  const T* data;
  int64_t k;
  const T* at(int64_t panel, int64_t depth) const { return data + (panel * k + depth) * kTileCols; }
};

// Rows [row, row + rows) × depths [depth, depth + kc) of A, in tiles of `height` rows.
void pack_rows(const MatrixRef& a, int64_t row, int64_t rows, int height, int64_t depth, int64_t kc,
               float* block) {
  with_dtype(a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = 0; r < rows; r += height, block += kc * kTileRows)
      pack_panel<kTileRows>(at<T>(a, row + r, depth), a.row_stride, a.col_stride,
                            static_cast<int>(least(height, rows - r)), kc, block);
  });
}

// Panel `panel` of B over depths [depth, depth + kc), widened.
void pack_columns(const MatrixRef& b, int64_t n, int64_t panel, int64_t depth, int64_t kc,
                  float* to) {
  const int64_t col = panel * kTileCols;
  with_dtype(b.dtype, [&](auto element) {
    using T = decltype(element);
    pack_panel<kTileCols>(at<T>(b, depth, col), b.col_stride, b.row_stride,
                          static_cast<int>(least(kTileCols, n - col)), kc, to);
  });
}

// All tiles of one block of A against one panel of B. Tiles lie below each other in c, or all in
// the same place where `kept` is false; done(row, rows, tile) gets each one while it is still in
// L1.
template <class T, class F>
void multiply_block(const float* a, int64_t rows, int height, int64_t kc, const T* b, float* c,
                    int64_t ldc, bool kept, bool accumulate, F&& done) {
  const float* widened = nullptr;
  // Widening costs as much as the loads of one tile; from the second tile on it is won back.
  if constexpr (sizeof(T) < sizeof(float)) {
    if (rows > height) {
      float* strip = floats(Scratch::panels, kc * kTileCols);
      convert_row(b, strip, kc * kTileCols);
      widened = strip;
    }
  }
  for (int64_t r = 0; r < rows; r += height, a += kc * kTileRows) {
    const int used = static_cast<int>(least(height, rows - r));
    with_rows(used, [&]<int ROWS>(Rows<ROWS>) {
      if (widened)
        tile<ROWS>(kc, a, widened, kTileCols, c, ldc, accumulate);
      else
        tile<ROWS>(kc, a, b, kTileCols, c, ldc, accumulate);
    });
    done(r, used, c);
    if (kept) c += height * ldc;
  }
}

// One thread's rows × panels of one product.
// `b` and `gate` hold panels from `base` on.
template <class T>
void multiply_panels(const GemmParams& p, const GemmPlan& plan, Share rows, Share panels,
                     int64_t base, Panels<T> b, Panels<T> gate) {
  const bool gated = p.gated;
  const bool plain = is_plain(p);
  const bool one_depth = plan.kc >= p.k;
  // A tile is finished in L1 at once where k is not cut; otherwise the sums of the whole block wait
  // for the next depth. Those of the gate wait for their partners in any case.
  const int64_t width = one_depth ? kTileCols : (panels.end - panels.begin) * kTileCols;
  const int64_t mc = least(plan.mc, rows.end - rows.begin);
  const int64_t waiting = one_depth ? kTileRows : mc;
  float* sums = floats(Scratch::tile, (waiting + (gated ? mc : 0)) * width);
  float* gate_sums = gated ? sums + waiting * width : nullptr;
  const auto nothing = [](int64_t, int, float*) {};

  for (int64_t row = rows.begin; row < rows.end; row += mc) {
    const int64_t count = least(mc, rows.end - row);
    const int height = balanced_rows(count);
    int64_t depth = 0;
    do {
      const int64_t kc = least(plan.kc, p.k - depth);
      const bool first = depth == 0, last = depth + kc >= p.k;
      float* block = floats(Scratch::rows, divide_up(count, height) * kTileRows * kc);
      pack_rows(p.a, row, count, height, depth, kc, block);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t col = panel * kTileCols;
        const int cols = static_cast<int>(least(kTileCols, p.n - col));
        if (plain && cols == kTileCols) {
          float* out = static_cast<float*>(p.out) + row * p.out_stride + col;
          multiply_block(block, count, height, kc, b.at(panel - base, depth), out, p.out_stride,
                         true, !first, nothing);
          continue;
        }
        const int64_t offset = one_depth ? 0 : (panel - panels.begin) * kTileCols;
        const PanelBias bias(p.bias, col, cols), gate_bias(p.gate_bias, col, cols);
        float* g = gated ? gate_sums + offset : nullptr;
        if (gated)
          multiply_block(block, count, height, kc, gate.at(panel - base, depth), g, width, true,
                         !first, nothing);
        multiply_block(block, count, height, kc, b.at(panel - base, depth), sums + offset, width,
                       !one_depth, !first, [&](int64_t r, int used, float* tile_sums) {
                         if (last)
                           finish_tile(p, tile_sums, g ? g + r * width : nullptr, width, bias,
                                       gate_bias,
                                       {.row = row + r, .col = col, .rows = used, .cols = cols});
                       });
      }
      depth += kc;
    } while (depth < p.k);
  }
}

// Weights that were packed beforehand: every thread reads its panels where they lie.
void multiply_packed(const GemmParams& p, const GemmPlan& plan, int t) {
  const Share rows(p.m, t % plan.row_threads, plan.row_threads);
  const Share mine(divide_up(p.n, kTileCols), t / plan.row_threads, plan.col_threads);
  const int64_t step = plan.nc / kTileCols;
  with_dtype(p.b.matrix.dtype, [&](auto element) {
    using T = decltype(element);
    const Panels<T> b{static_cast<const T*>(p.b.matrix.data), p.k};
    const Panels<T> gate{static_cast<const T*>(p.gate.matrix.data), p.k};
    for (int64_t q = mine.begin; q < mine.end; q += step) {
      multiply_panels(p, plan, rows, {q, least(q + step, mine.end)}, 0, b, gate);
    }
  });
}

// Columns of B, in panels, that one column of the thread grid packs at a time.
int64_t panels_per_block(const GemmParams& p, const GemmPlan& plan) {
  const int64_t widest = divide_up(divide_up(p.n, kTileCols), plan.col_threads);
  return least(plan.nc / kTileCols, widest);
}

// Weights as they come: packed block by block into memory that the threads of one column of the
// grid share.
void multiply_unpacked(const GemmParams& p, const GemmPlan& plan, float* shared, int t) {
  const int row_thread = t % plan.row_threads, col_thread = t / plan.row_threads;
  const Share rows(p.m, row_thread, plan.row_threads);
  const Share mine(divide_up(p.n, kTileCols), col_thread, plan.col_threads);
  const int64_t step = panels_per_block(p, plan), panel_size = kTileCols * p.k;
  const int64_t widest = divide_up(divide_up(p.n, kTileCols), plan.col_threads);
  float* block = shared + col_thread * step * panel_size * (p.gated ? 2 : 1);
  float* gate_block = p.gated ? block + step * panel_size : nullptr;
  const bool alone = plan.row_threads == 1;
  // Every thread counts the same blocks, empty ones included, and so meets the same barriers.
  for (int64_t done = 0; done < widest; done += step) {
    const int64_t base = least(mine.begin + done, mine.end);
    const int64_t count = least(step, mine.end - base);
    const Share packing(count, row_thread, plan.row_threads);
    for (int64_t q = packing.begin; q < packing.end; ++q) {
      pack_columns(p.b.matrix, p.n, base + q, 0, p.k, block + q * panel_size);
      if (p.gated) pack_columns(p.gate.matrix, p.n, base + q, 0, p.k, gate_block + q * panel_size);
    }
    if (!alone) barrier();
    multiply_panels(p, plan, rows, {base, base + count}, base, Panels<float>{block, p.k},
                    Panels<float>{gate_block, p.k});
    if (!alone && done + step < widest) barrier();
  }
}

// Few rows: x widened once, then dot products with the weight's own lines.
void multiply_dots(const GemmParams& p, const float* x, int t, int threads) {
  const Share mine(divide_up(p.n, kTileCols), t, threads);
  const int rows = static_cast<int>(p.m);
  float* sums = floats(Scratch::tile, 2 * p.m * kTileCols);
  float* gate_sums = p.gated ? sums + p.m * kTileCols : nullptr;
  const auto products = [&](const MatrixRef& b, int64_t col, int cols, float* c) {
    with_dtype(b.dtype, [&](auto element) {
      using T = decltype(element);
      dot_products(p.k, x, p.k, rows, at<T>(b, 0, col), b.col_stride, cols, c, kTileCols);
    });
  };
  for (int64_t i = 0; i < 2 * p.m * kTileCols; ++i) sums[i] = 0.0f;
  for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
    const int64_t col = panel * kTileCols;
    const int cols = static_cast<int>(least(kTileCols, p.n - col));
    products(p.b.matrix, col, cols, sums);
    if (gate_sums) products(p.gate.matrix, col, cols, gate_sums);
    finish_tile(p, sums, gate_sums, kTileCols, PanelBias(p.bias, col, cols),
                PanelBias(p.gate_bias, col, cols),
                {.row = 0, .col = col, .rows = rows, .cols = cols});
  }
}

// x as float32 rows [m][k].
float* widen_rows(const GemmParams& p) {
  float* x = floats(Scratch::shared_panels, p.m * p.k);
  with_dtype(p.a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = 0; r < p.m; ++r)
      pack_panel<1>(at<T>(p.a, r, 0), p.a.row_stride, p.a.col_stride, 1, p.k, x + r * p.k);
  });
  return x;
}

// Memory for the packed blocks of all columns of the thread grid.
float* shared_block(const GemmParams& p, const GemmPlan& plan) {
  if (p.b.packed) return nullptr;
  const int64_t panels = plan.col_threads * panels_per_block(p, plan) * (p.gated ? 2 : 1);
  return floats(Scratch::shared_panels, panels * kTileCols * p.k);
}

bool lines_contiguous(const RightRef& b) { return !b.packed && b.matrix.row_stride == 1; }

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 16;

void multiply(const GemmParams& p, int threads) {
  const double work = static_cast<double>(p.m) * p.n * p.k;
  if (work < kSerialWork || in_parallel()) threads = 1;
  const GemmShape shape = {
      .m = p.m,
      .n = p.n,
      .k = p.k,
      .lines_contiguous = lines_contiguous(p.b) && (!p.gated || lines_contiguous(p.gate))};
  const auto plan_for = [&](int n) {
    return plan_gemm(shape, {kTileRows, kTileCols}, caches(), n);
  };
  GemmPlan plan = plan_for(threads);
  float* shared = plan.dot ? widen_rows(p) : shared_block(p, plan);
  parallel(threads, [&](int t, int n) {
    if (n != threads) {  // the runtime gave fewer threads than asked for
      if (t == 0) {
        plan = plan_for(n);
        if (!plan.dot) shared = shared_block(p, plan);
      }
      barrier();
    }
    if (plan.dot) return multiply_dots(p, shared, t, n);
    if (p.b.packed) return multiply_packed(p, plan, t);
    multiply_unpacked(p, plan, shared, t);
  });
}

// The product of one member of a batch.
GemmParams member(const GemmParams& p, int64_t i) {
  GemmParams one = p;
  const auto advance = [](const void* data, DType dtype, int64_t elements) {
    return static_cast<const char*>(data) + elements * (dtype == DType::f32 ? 4 : 2);
  };
  one.batch = 1;
  one.a.data = advance(p.a.data, p.a.dtype, p.a_offsets[i]);
  one.b.matrix.data = advance(p.b.matrix.data, p.b.matrix.dtype, p.b_offsets[i]);
  one.out = const_cast<char*>(advance(p.out, p.out_dtype, p.out_offsets[i]));
  return one;
}

}  // namespace

void gemm(const GemmParams& p) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  if (!p.a_offsets) return multiply(p, p.threads);
  // Whole products per thread where they divide evenly enough, otherwise all threads on each.
  const bool whole = p.batch % p.threads == 0 || p.batch >= 8 * p.threads;
  if (whole)
    return parallel_ranges(p.batch, 1, p.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) multiply(member(p, i), 1);
    });
  for (int64_t i = 0; i < p.batch; ++i) multiply(member(p, i), p.threads);
}

void pack_panels(const PackParams& p) {
  constexpr int64_t kStrip = 512;  // of k: what is widened on the way stays in L1
  with_dtype(p.matrix.dtype, [&](auto element) {
    using T = decltype(element);
    T* panels = static_cast<T*>(p.panels);
    parallel_ranges(divide_up(p.n, kTileCols), 4, p.threads, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q)
        for (int64_t depth = 0; depth < p.k; depth += kStrip) {
          const int64_t kc = least(kStrip, p.k - depth);
          T* to = panels + (q * p.k + depth) * kTileCols;
          if constexpr (sizeof(T) == sizeof(float)) {
            pack_columns(p.matrix, p.n, q, depth, kc, to);
          } else {
            float strip[kStrip * kTileCols];
            pack_columns(p.matrix, p.n, q, depth, kc, strip);
            convert_row(strip, to, kc * kTileCols);
          }
        }
    });
  });
}

void column_sum(const ColumnSumParams& p) {
  const auto sum_columns = [&](auto from, auto to, int64_t col, auto... count) {
    using S = decltype(from);
    using T = decltype(to);
    // Sums of sums: one chain over a hundred thousand tokens would be off by a tenth of a percent.
    constexpr int64_t kChain = 512;
    f32v total = {};
    const S* a = static_cast<const S*>(p.a) + col;
    for (int64_t first = 0; first < p.rows; first += kChain) {
      f32v part = {};
      const int64_t last = least(first + kChain, p.rows);
      for (int64_t r = first; r < last; ++r, a += p.row_stride) part += load(a, count...);
      total += part;
    }
    store(static_cast<T*>(p.out) + col, total, count...);
  };
  with_dtype(p.dtype, [&](auto from) {
    with_dtype(p.out_dtype, [&](auto to) {
      parallel_ranges(divide_up(p.cols, kLanes), 16, p.threads, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; ++v) {
          const int64_t col = v * kLanes;
          if (p.cols - col >= kLanes)
            sum_columns(from, to, col);
          else
            sum_columns(from, to, col, static_cast<int>(p.cols - col));
        }
      });
    });
  });
}

}  // namespace lanewise::LANEWISE_TARGET
