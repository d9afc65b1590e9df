#include "gemm/kernel.h"

#include <type_traits>

#include "dispatch/cpu.h"
#include "dispatch/parallel.h"
#include "dispatch/scratch.h"
#include "gemm/axpy.h"
#include "gemm/blocked.h"
#include "gemm/dot.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Rows of x as dot products read them, `stride` words apart.
template <class Word>
struct DotRows {
  const Word* data;
  int64_t stride;
};

// Few rows: x arranged once, then dot products with the weight's own lines.
template <class T>
void multiply_dots(const GemmParams& p, const GemmPlan& plan,
                   const DotRows<typename DotStep<T>::Word>& x, Share lines) {
  const int rows = static_cast<int>(p.m);
  with_rows<kMostDotRowsAtOnce>(dot_rows(rows), [&]<int ROWS>(Rows<ROWS>) {
    constexpr int kWidth = kTileCols / dot_lines<ROWS, T>() * dot_lines<ROWS, T>();
    float* sums = scratch_of<float>(Scratch::tile, 2 * p.m * kTileCols);
    float* gate_sums = p.gated ? sums + p.m * kTileCols : nullptr;
    const auto products = [&](const MatrixRef& b, int64_t col, int cols, float* c) {
      dot_products<dot_lines<ROWS, T>()>(p.k, x.data, x.stride, rows, at<T>(b, 0, col),
                                         b.col_stride, cols, plan.far, c, kTileCols);
    };
    for (int64_t col = lines.begin; col < lines.end; col += kWidth) {
      const int cols = static_cast<int>(least(kWidth, lines.end - col));
      products(p.b.matrix, col, cols, sums);
      if (gate_sums) products(p.gate.matrix, col, cols, gate_sums);
      finish_tile(p, sums, gate_sums, kTileCols, PanelBias(p.bias, col, cols),
                  PanelBias(p.gate_bias, col, cols),
                  {.row = 0, .col = col, .rows = rows, .cols = cols});
    }
  });
}

template <class T>
DotRows<typename DotStep<T>::Word> arrange_rows(const GemmParams& p) {
  using Word = typename DotStep<T>::Word;
  if constexpr (std::is_same_v<T, float>)
    if (p.a.col_stride == 1 && p.k % kLanes == 0) return {at<float>(p.a, 0, 0), p.a.row_stride};
  const int64_t stride = dot_words<T>(p.k);
  Word* x = scratch_of<Word>(Scratch::shared_panels, p.m * stride);
  for (int64_t r = 0; r < p.m; ++r)
    arrange_row(at<T>(p.a, r, 0), p.a.col_stride, p.k, x + r * stride);
  return {x, stride};
}

// Few rows of float32 x [m][k], and a right operand whose rows are added up.
void multiply_axpy(const GemmParams& p, const GemmPlan& plan, const float* x, Share columns) {
  const int rows = static_cast<int>(p.m);
  const int64_t ld = axpy_cols(p.m), size = p.m * ld;
  float* sums = scratch_of<float>(Scratch::tile, 3 * size);
  float* gate_sums = p.gated ? sums + size : nullptr;
  const auto products = [&](const MatrixRef& b, int64_t col, int64_t cols, float* to) {
    with_dtype(b.dtype, [&](auto element) {
      axpy_products(p.k, plan.chain, rows, x, p.k, at<decltype(element)>(b, 0, col), b.row_stride,
                    cols, sums + 2 * size, to, ld);
    });
  };
  for (int64_t col = columns.begin; col < columns.end; col += ld) {
    const int64_t cols = least(ld, columns.end - col);
    products(p.b.matrix, col, cols, sums);
    if (gate_sums) products(p.gate.matrix, col, cols, gate_sums);
    for (int64_t c = 0; c < cols; c += kTileCols) {
      const int width = static_cast<int>(least(kTileCols, cols - c));
      finish_tile(p, sums + c, gate_sums ? gate_sums + c : nullptr, ld,
                  PanelBias(p.bias, col + c, width), PanelBias(p.gate_bias, col + c, width),
                  {.row = 0, .col = col + c, .rows = rows, .cols = width});
    }
  }
}

// All rows of x, in float32.
float* widen_rows(const GemmParams& p) {
  float* x = scratch_of<float>(Scratch::shared_panels, p.m * p.k + kLanes);
  with_dtype(p.a.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t r = 0; r < p.m; ++r)
      if (p.a.col_stride == 1)
        convert_row(at<T>(p.a, r, 0), x + r * p.k, p.k);
      else
        for (int64_t i = 0; i < p.k; ++i) x[r * p.k + i] = to_float(*at<T>(p.a, r, i));
  });
  return x;
}

Layout layout_of(const RightRef& b) {
  if (b.packed) return Layout::packed;
  if (b.matrix.row_stride == 1) return Layout::columns;
  return b.matrix.col_stride == 1 ? Layout::rows : Layout::strided;
}

// What both right operands have in common. Dot products multiply like with like.
Layout layout_of(const GemmParams& p) {
  const Layout right = layout_of(p.b);
  if (p.gated && layout_of(p.gate) != right) return Layout::strided;
  return right == Layout::columns && p.a.dtype != p.b.matrix.dtype ? Layout::strided : right;
}

// Whether the machine multiplies what both operands hold.
bool multiplies_pairs(const GemmParams& p) {
  const auto holds = [](const MatrixRef& m) { return m.dtype == DType::bf16; };
  return kMultipliesPairs && holds(p.a) && holds(p.b.matrix) && (!p.gated || holds(p.gate.matrix));
}

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 16;

GemmPlan plan_of(const GemmParams& p, int threads) {
  const GemmShape shape = {.m = p.m,
                           .n = p.n,
                           .k = p.k,
                           .right = layout_of(p),
                           .left_bytes = multiplies_pairs(p) ? 2 : 4,
                           .right_bytes = p.b.matrix.dtype == DType::f32 ? 4 : 2,
                           .gated = p.gated};
  return plan_gemm(shape, {kTileRows, kTileCols}, caches(), threads);
}

// One product, planned for `threads`; `next`, where given, comes after it.
void multiply(const GemmParams& p, const GemmPlan& plan, int threads,
              const GemmParams* next = nullptr) {
  if (plan.method == Method::axpy) {
    const float* x = widen_rows(p);
    return parallel(threads, [&](int t, int n) { multiply_axpy(p, plan, x, Share(p.n, t, n)); });
  }
  if (plan.method == Method::dot) {
    return with_dtype(p.a.dtype, [&](auto element) {
      using T = decltype(element);
      const auto x = arrange_rows<T>(p);
      parallel(threads, [&](int t, int n) { multiply_dots<T>(p, plan, x, Share(p.n, t, n)); });
    });
  }
  parallel(threads, [&](int t, int n) {
    const GemmPlan own = n == threads ? plan : plan_of(p, n);
    const Share rows(p.m, t % own.row_threads, own.row_threads);
    const Share panels(divide_up(p.n, kTileCols), t / own.row_threads, own.col_threads);
    if constexpr (kMultipliesPairs)
      if (multiplies_pairs(p)) return Blocked<bf16x2>(p, own).multiply(rows, panels, next);
    Blocked<float>(p, own).multiply(rows, panels, next);
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
  const double work = static_cast<double>(p.m) * p.n * p.k;
  const auto threads_for = [&](double all) {
    return all < kSerialWork || in_parallel() ? 1 : p.threads;
  };
  if (!p.a_offsets) {
    const int threads = threads_for(work);
    return multiply(p, plan_of(p, threads), threads);
  }
  // Whole products per thread where they divide evenly enough, otherwise all threads on each.
  const bool whole = p.batch % p.threads == 0 || p.batch >= 8 * p.threads;
  const int threads = whole ? 1 : threads_for(work);
  const GemmPlan plan = plan_of(p, threads);
  const auto range = [&](int64_t begin, int64_t end) {
    GemmParams now = member(p, begin), next = now;
    for (int64_t i = begin; i < end; ++i, now = next) {
      const bool more = i + 1 < end;
      if (more) next = member(p, i + 1);
      multiply(now, plan, threads, more ? &next : nullptr);
    }
  };
  if (whole) return parallel_ranges(p.batch, 1, threads_for(work * p.batch), range);
  range(0, p.batch);
}

void pack_panels(const PackParams& p) {
  const MatrixRef& m = p.matrix;
  const auto each_panel = [&](auto&& pack) {
    parallel_ranges(divide_up(p.n, kTileCols), 4, p.threads, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) pack(q);
    });
  };
  if (m.dtype == DType::f16) {
    constexpr int64_t kStrip = 256;  // of k: what is widened on the way stays in L1
    each_panel([&](int64_t q) {
      float strip[kStrip * kTileCols] = {};
      for (int64_t depth = 0; depth < p.k; depth += kStrip) {
        const int64_t kc = least(kStrip, p.k - depth);
        pack_panel<kTileCols>(at<f16>(m, depth, q * kTileCols), m.col_stride, m.row_stride,
                              p.n - q * kTileCols, kTileCols, kc, strip);
        convert_row(strip, static_cast<f16*>(p.panels) + (q * p.k + depth) * kTileCols,
                    kc * kTileCols);
      }
    });
    return;
  }
  const auto pack_words = [&]<class T, class Word>(T, Word) {
    each_panel([&](int64_t q) {
      pack_panel<kTileCols>(
          at<T>(m, 0, q * kTileCols), m.col_stride, m.row_stride, p.n - q * kTileCols, kTileCols,
          p.k, static_cast<Word*>(p.panels) + q * divide_up(p.k, kDepthOf<Word>) * kTileCols);
    });
  };
  if (m.dtype == DType::f32)
    pack_words(float{}, float{});
  else
    pack_words(bf16{}, bf16x2{});
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
