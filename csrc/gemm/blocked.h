// One thread's rows × columns of a product, in the blocks of the plan.
#pragma once

#include <type_traits>

#include "dispatch/scratch.h"
#include "gemm/epilogue.h"
#include "gemm/pack.h"
#include "gemm/plan.h"

namespace lanewise::LANEWISE_TARGET {

using plan_detail::divide_up;
using plan_detail::least;

inline constexpr int64_t kTileSize = kTileRows * kTileCols;

template <class T>
T* scratch_of(Scratch slot, int64_t count) {
  return static_cast<T*>(scratch(slot, static_cast<size_t>(count) * sizeof(T)));
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

// The right operand, panel by panel, as tiles with words of type Word read it.
template <class Word>
class Strips {
 public:
  Strips(const RightRef& right, int64_t n, int64_t k) : right_(right), n_(n), k_(k) {}

  // The distance of the rows of a panel where it can be read in place: a matrix of float32,
  // contiguous along n and so small that its rows share few pages. 0 where it cannot.
  int64_t stride_in_place(int64_t panel) const {
    constexpr int64_t kSmall = 32 << 10;  // bytes
    const MatrixRef& m = right_.matrix;
    const bool fits = !right_.packed && m.dtype == DType::f32 && m.col_stride == 1 &&
                      (panel + 1) * kTileCols <= n_ && k_ * m.row_stride * 4 <= kSmall;
    return std::is_same_v<Word, float> && fits ? m.row_stride : 0;
  }
  const Word* in_place(int64_t panel, int64_t depth) const {
    return at<Word>(right_.matrix, depth, panel * kTileCols);
  }

  // Panel `panel` over depths [depth, depth + kc): where it lies, or packed or widened into `room`.
  const Word* strip(int64_t panel, int64_t depth, int64_t kc, Word* room) const {
    const Word* found = nullptr;
    with_dtype(right_.matrix.dtype, [&](auto element) {
      using T = decltype(element);
      if (!right_.packed)
        found = packed_now<T>(panel, depth, kc, room);
      else if constexpr (std::is_same_v<T, bf16>)
        found = in_words(panel_words<bf16x2>(panel, depth), kc, room);
      else
        found = in_words(panel_words<T>(panel, depth), kc, room);
    });
    return found;
  }

  bool packed() const { return right_.packed; }
  DType dtype() const { return right_.matrix.dtype; }

  // The words of a packed panel.
  template <class W>
  const W* panel_words(int64_t panel, int64_t depth) const {
    return static_cast<const W*>(right_.matrix.data) +
           (panel * divide_up(k_, kDepthOf<W>) + depth / kDepthOf<W>)*kTileCols;
  }

  // What the tiles of this panel are to fetch: the next panel; or, where one tile reads a packed
  // panel from end to end, what lies a little further on, as far as memory's latency asks for.
  Upcoming upcoming(int64_t panel, int64_t depth, int64_t kc, int64_t tiles) const {
    constexpr int64_t kAhead = 4096;
    const MatrixRef& m = right_.matrix;
    const auto* data = static_cast<const char*>(m.data);
    const int64_t size = m.dtype == DType::f32 ? 4 : 2;
    const int64_t pad = m.dtype == DType::bf16 ? k_ % 2 : 0;
    const auto packed = [&](int64_t of) {
      return data + (of * (k_ + pad) + depth) * kTileCols * size;
    };
    if (!data) return {};
    if (right_.packed && tiles == 1) return {packed(panel) + kAhead, 1, 0, kc * kTileCols * size};
    const int64_t next = (panel + 1) * kTileCols, lines = least(kTileCols, n_ - next);
    if (lines <= 0) return {};
    if (right_.packed) return {packed(panel + 1), 1, 0, kc * kTileCols * size};
    const char* first = data + (depth * m.row_stride + next * m.col_stride) * size;
    if (m.row_stride == 1) return {first, lines, m.col_stride * size, kc * size};
    if (m.col_stride == 1) return {first, kc, m.row_stride * size, lines * size};
    return {};
  }

 private:
  template <class T>
  const Word* packed_now(int64_t panel, int64_t depth, int64_t kc, Word* room) const {
    if constexpr (std::is_same_v<Word, float> || std::is_same_v<T, bf16>) {
      const int64_t col = panel * kTileCols;
      const MatrixRef& m = right_.matrix;
      pack_panel<kTileCols>(at<T>(m, depth, col), m.col_stride, m.row_stride,
                            static_cast<int>(least(kTileCols, n_ - col)), kc, room);
    }
    return room;
  }

  template <class W>
  static const Word* in_words(const W* words, int64_t kc, Word* room) {
    if constexpr (std::is_same_v<W, Word>) {
      return words;
    } else if constexpr (std::is_same_v<W, bf16x2>) {
      for (int64_t i = 0; i < kc; i += 2, room += 2 * kTileCols, words += kTileCols)
        for (int at = 0; at < kTileCols; at += kLanes) {
          const pairs both = load(words + at);
          store(room + at, widen_even(both));
          store(room + kTileCols + at, widen_odd(both));
        }
      return room - divide_up(kc, 2) * 2 * kTileCols;
    } else if constexpr (std::is_same_v<Word, float>) {
      convert_row(words, room, kc * kTileCols);
    }
    return room;
  }

  const RightRef right_;
  const int64_t n_, k_;
};

// Rows [row, row + rows) × depths [depth, depth + kc) of A, in panels of `height` rows that lie
// `stride` words apart.
template <class Word>
void pack_rows(const MatrixRef& a, int64_t row, int64_t rows, int height, int64_t depth, int64_t kc,
               int64_t stride, Word* block) {
  with_dtype(a.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<Word, float> || std::is_same_v<T, bf16>) {
      // Where rows lie side by side, a few k of all of them at a time read memory in order.
      const int64_t step = a.row_stride == 1 && a.col_stride != 1 ? 16 : kc;
      for (int64_t i = 0; i < kc; i += step) {
        Word* panel = block + i / kDepthOf<Word> * kTileRows;
        for (int64_t r = 0; r < rows; r += height, panel += stride)
          pack_panel<kTileRows>(at<T>(a, row + r, depth + i), a.row_stride, a.col_stride,
                                static_cast<int>(least(height, rows - r)), least(step, kc - i),
                                panel);
      }
    }
  });
  // The second half of a pair of B is zero there; what it meets must not be infinite.
  if (kDepthOf<Word> == 1 && kc % 2)
    for (int64_t r = 0; r < rows; r += height, block += stride)
      for (int l = 0; l < kTileRows; ++l) block[kc * kTileRows + l] = Word{};
}

// The products of one thread, tile by tile.
template <class Word>
class Blocked {
 public:
  Blocked(const GemmParams& p, const GemmPlan& plan)
      : p_(p), plan_(plan), b_(p.b, p.n, p.k), gate_(p.gate, p.n, p.k), cut_(plan.kc < p.k), rows_in_place_(reads_rows_in_place(p)) {}

  // `next`, where given, is multiplied after this: what its matrices span is fetched meanwhile.
  void multiply(Share rows, Share panels, const GemmParams* next) {
    if (next) {
      const int64_t turns = divide_up(rows.end - rows.begin, kTileRows) *
                            (panels.end - panels.begin) * words(p_.k) / kWordsPerTurn;
      upcoming_.a = whole(next->a, p_.m, p_.k, turns);
      upcoming_.b = whole(next->b.matrix, p_.k, p_.n, turns);
    }
    const int64_t step = plan_.nc / kTileCols;
    for (int64_t q = panels.begin; q < panels.end; q += step)
      for (int64_t row = rows.begin; row < rows.end; row += plan_.mc)
        multiply_block(row, least(plan_.mc, rows.end - row), {q, least(q + step, panels.end)});
  }

 private:
  static constexpr int64_t words(int64_t depth) { return divide_up(depth, kDepthOf<Word>); }

  // A matrix that lies dense in memory, either way round.
  static Upcoming whole(const MatrixRef& m, int64_t rows, int64_t cols, int64_t turns) {
    const int64_t size = m.dtype == DType::f32 ? 4 : 2;
    if (m.row_stride * m.col_stride != (m.col_stride == 1 ? cols : rows)) return {};
    Upcoming all(m.data, 1, 0, rows * cols * size);
    all.spread_over(turns);
    return all;
  }

  // The tiles of one block: their rows, where A is packed, and where their sums wait.
  void multiply_block(int64_t row, int64_t count, Share panels) {
    row_ = row;
    count_ = count;
    height_ = balanced_rows(count);
    tiles_ = divide_up(count, height_);
    // An odd depth next to pairs of B reads one more k of A; stores run over the end of a panel.
    stride_ = words(plan_.kc + 1) * kTileRows + kLanes;
    block_ = scratch_of<Word>(Scratch::rows, tiles_ * stride_);
    room_ = scratch_of<Word>(Scratch::panels, words(plan_.kc + 1) * kTileCols + kLanes);
    const int64_t waiting = (cut_ ? panels.end - panels.begin : 1) * tiles_ * kTileSize;
    sums_ = scratch_of<float>(Scratch::tile, p_.gated ? 2 * waiting : waiting);
    gate_sums_ = p_.gated ? sums_ + waiting : nullptr;
    for (int64_t depth = 0; depth == 0 || depth < p_.k; depth += plan_.kc) {
      depth_ = depth;
      kc_ = least(plan_.kc, p_.k - depth);
      if (!rows_in_place_) pack_rows(p_.a, row, count, height_, depth, kc_, stride_, block_);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        multiply_panel(panel, cut_ ? (panel - panels.begin) * tiles_ * kTileSize : 0);
    }
  }

  // All tiles of the block against one panel of B, and of the gate.
  void multiply_panel(int64_t panel, int64_t waiting) {
    const bool first = depth_ == 0, last = depth_ + kc_ >= p_.k;
    const int64_t col = panel * kTileCols;
    const int cols = static_cast<int>(least(kTileCols, p_.n - col));
    const PanelBias bias(p_.bias, col, cols), gate_bias(p_.gate_bias, col, cols);
    if (p_.gated)
      each_tile(gate_, panel, [&](int64_t t, auto&& run) {
        const Sums sums = {gate_sums_ + waiting + t * kTileSize, kTileCols};
        run(first ? Sums{} : sums, sums);
      });
    const bool direct = last && cols == kTileCols && is_plain(p_);
    each_tile(b_, panel, [&](int64_t t, auto&& run) {
      // Sums that do not wait are finished at once and all use the same place in L1.
      const Sums sums = {sums_ + waiting + (cut_ ? t * kTileSize : 0), kTileCols};
      const Patch patch = {
          .row = row_ + t * height_, .col = col, .rows = tile_rows(t), .cols = cols};
      if (last) prefetch_patch(p_, patch);
      run(first ? Sums{} : sums, direct ? rows_of(patch) : sums);
      if (last && !direct)
        finish_tile(p_, sums.data, p_.gated ? gate_sums_ + waiting + t * kTileSize : nullptr,
                    kTileCols, bias, gate_bias, patch);
    });
  }

  Sums rows_of(const Patch& patch) const {
    return {static_cast<float*>(p_.out) + patch.row * p_.out_stride + patch.col, p_.out_stride};
  }

  int tile_rows(int64_t t) const { return static_cast<int>(least(height_, count_ - t * height_)); }

  // Calls f(t, run) for every tile t; run(from, to) multiplies it.
  template <class F>
  void each_tile(const Strips<Word>& strips, int64_t panel, F&& f) {
    upcoming_.panel = strips.upcoming(panel, depth_, kc_, tiles_);
    const auto with = [&](const auto* b, int64_t ldb) {
      using B = std::remove_cvref_t<decltype(*b)>;
      upcoming_.panel.spread_over(tiles_ * (kc_ / kDepthOf<B> / kWordsPerTurn));
      for (int64_t t = 0; t < tiles_; ++t)
        f(t, [&](Sums from, Sums to) {
          if constexpr (std::is_same_v<B, float>)
            if (rows_in_place_)
              return run_tile(tile_rows(t),
                              RowsInPlace{at<float>(p_.a, row_ + t * height_, depth_),
                                          p_.a.row_stride},
                              b, ldb, from, to);
          run_tile(tile_rows(t), PackedRows<Word>{block_ + t * stride_}, b, ldb, from, to);
        });
    };
    // Widening costs as much as the loads of one tile; from the second tile on it is won back.
    const DType dtype = strips.dtype();
    if constexpr (std::is_same_v<Word, float>) {
      if (strips.packed() && tiles_ == 1 && dtype == DType::f16)
        return with(strips.template panel_words<f16>(panel, depth_), kTileCols);
      if (strips.packed() && tiles_ == 1 && dtype == DType::bf16)
        return with(strips.template panel_words<bf16x2>(panel, depth_), kTileCols);
    }
    if (const int64_t ldb = strips.stride_in_place(panel))
      return with(strips.in_place(panel, depth_), ldb);
    with(strips.strip(panel, depth_, kc_, room_), kTileCols);
  }

  // One tile over the block's depth, chain by chain of sums.
  template <class A, class B>
  void run_tile(int rows, A a, const B* b, int64_t ldb, Sums from, Sums to) {
    for (int64_t done = 0; done == 0 || done < kc_; done += plan_.chain, from = to) {
      const int64_t depth = least(plan_.chain, kc_ - done);
      run_chain(rows, divide_up(depth, kDepthOf<B>), a.from(done / kDepthOf<Word>),
                b + done / kDepthOf<B> * ldb, ldb, from, to);
    }
  }

  template <class A, class B>
  void run_chain(int rows, int64_t words, A a, const B* b, int64_t ldb, Sums from, Sums to) {
    with_rows(rows, [&]<int ROWS>(Rows<ROWS>) {
      if (ROWS <= 3 && p_.m == ROWS)
        tile<ROWS, kChainsOf<ROWS>>(words, a, b, ldb, upcoming_, from, to);
      else
        tile<ROWS, 1>(words, a, b, ldb, upcoming_, from, to);
    });
  }

  // Packing A costs as much as multiplying it with about one vector of columns.
  static bool reads_rows_in_place(const GemmParams& p) {
    constexpr int64_t kMostPanels = 8;
    return std::is_same_v<Word, float> && p.a.dtype == DType::f32 && p.a.col_stride == 1 &&
           p.n <= kMostPanels * kTileCols && p.b.matrix.dtype == DType::f32 &&
           (!p.gated || p.gate.matrix.dtype == DType::f32);
  }

  const GemmParams& p_;
  const GemmPlan& plan_;
  const Strips<Word> b_, gate_;
  Fetches upcoming_;
  const bool cut_;  // k is, and sums wait for its next part
  const bool rows_in_place_;

  int64_t row_ = 0, count_ = 0, tiles_ = 0, stride_ = 0, depth_ = 0, kc_ = 0;
  int height_ = 0;
  Word *block_ = nullptr, *room_ = nullptr;
  float *sums_ = nullptr, *gate_sums_ = nullptr;
};

}  // namespace lanewise::LANEWISE_TARGET
