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

  // Panel `panel` and those that follow it, over depths from `depth`, as they lie in memory: of a
  // packed operand.
  template <class W>
  Panels<W> packed_panels(int64_t panel, int64_t depth) const {
    return {panel_words<W>(panel, depth), kTileCols, divide_up(k_, kDepthOf<W>) * kTileCols};
  }

  // Whether `count` panels can be read in place: of a matrix of float32, contiguous along n and so
  // small that its rows share few pages.
  bool in_place(int64_t panel, int64_t count) const {
    constexpr int64_t kSmall = 32 << 10;  // bytes
    const MatrixRef& m = right_.matrix;
    return std::is_same_v<Word, float> && !right_.packed && m.dtype == DType::f32 &&
           m.col_stride == 1 && (panel + count) * kTileCols <= n_ &&
           k_ * m.row_stride * 4 <= kSmall;
  }
  Panels<Word> panels_in_place(int64_t panel, int64_t depth) const {
    const MatrixRef& m = right_.matrix;
    return {at<Word>(m, depth, panel * kTileCols), m.row_stride, kTileCols};
  }

  // `count` panels over depths [depth, depth + kc), packed or widened into `room`.
  Panels<Word> panels(int64_t panel, int64_t count, int64_t depth, int64_t kc, Word* room) const {
    constexpr DType kOwn = std::is_same_v<Word, float> ? DType::f32 : DType::bf16;
    if (right_.packed && right_.matrix.dtype == kOwn) return packed_panels<Word>(panel, depth);
    // Stores may run over the end of a panel into the next one, which is written later.
    const int64_t size = divide_up(kc + 1, kDepthOf<Word>) * kTileCols;
    for (int64_t i = 0; i < count; ++i)
      with_dtype(right_.matrix.dtype, [&](auto element) {
        using T = decltype(element);
        using Packed = std::conditional_t<std::is_same_v<T, bf16>, bf16x2, T>;
        if (right_.packed)
          widen(panel_words<Packed>(panel + i, depth), kc, room + i * size);
        else
          pack<T>(panel + i, depth, kc, room + i * size);
      });
    return {room, kTileCols, size};
  }
  static int64_t room(int64_t count, int64_t kc) {
    return count * divide_up(kc + 1, kDepthOf<Word>) * kTileCols + kLanes;
  }

  bool packed() const { return right_.packed; }
  DType dtype() const { return right_.matrix.dtype; }

  // The words of a packed panel.
  template <class W>
  const W* panel_words(int64_t panel, int64_t depth) const {
    return static_cast<const W*>(right_.matrix.data) +
           (panel * divide_up(k_, kDepthOf<W>) + depth / kDepthOf<W>)*kTileCols;
  }

  // What the tiles of `count` panels are to fetch: the panels after them; or, where one tile reads
  // packed panels from end to end, what lies a little further on, as far as memory's latency asks.
  Upcoming upcoming(int64_t panel, int64_t count, int64_t depth, int64_t kc, int64_t tiles) const {
    const MatrixRef& m = right_.matrix;
    const auto* data = static_cast<const char*>(m.data);
    const int64_t size = m.dtype == DType::f32 ? 4 : 2;
    const int64_t pad = m.dtype == DType::bf16 ? k_ % 2 : 0;
    const int64_t panel_bytes = (k_ + pad) * kTileCols * size;
    const auto packed = [&](int64_t of) {
      return data + of * panel_bytes + depth * kTileCols * size;
    };
    if (!data) return {};
    if (right_.packed && tiles == 1)
      return {packed(panel) + kAhead, count, panel_bytes, kc * kTileCols * size};
    const int64_t next = (panel + count) * kTileCols, lines = least(count * kTileCols, n_ - next);
    if (lines <= 0) return {};
    if (right_.packed)
      return {packed(panel + count), divide_up(lines, kTileCols), panel_bytes,
              kc * kTileCols * size};
    const char* first = data + (depth * m.row_stride + next * m.col_stride) * size;
    if (m.row_stride == 1) return {first, lines, m.col_stride * size, kc * size};
    if (m.col_stride == 1) return {first, kc, m.row_stride * size, lines * size};
    return {};
  }

 private:
  template <class T>
  void pack(int64_t panel, int64_t depth, int64_t kc, Word* room) const {
    if constexpr (std::is_same_v<Word, float> || std::is_same_v<T, bf16>) {
      const int64_t col = panel * kTileCols;
      const MatrixRef& m = right_.matrix;
      pack_panel<kTileCols>(at<T>(m, depth, col), m.col_stride, m.row_stride, n_ - col, kTileCols,
                            kc, room);
    }
  }

  template <class W>
  static void widen(const W* words, int64_t kc, Word* room) {
    if constexpr (std::is_same_v<Word, float> && std::is_same_v<W, bf16x2>) {
      for (int64_t i = 0; i < kc; i += 2, room += 2 * kTileCols, words += kTileCols)
        for (int at = 0; at < kTileCols; at += kLanes) {
          const pairs both = load(words + at);
          store(room + at, widen_even(both));
          store(room + kTileCols + at, widen_odd(both));
        }
    } else if constexpr (std::is_same_v<Word, float>) {
      convert_row(words, room, kc * kTileCols);
    }
  }

  const RightRef right_;
  const int64_t n_, k_;
};

// Some rows of A, cut into tiles of equal height within one: 13 rows are 5 + 4 + 4, not 6 + 6 + 1,
// since a low tile loads as much of B as a high one.
struct RowTiles {
  int64_t row, rows, count;
  RowTiles(int64_t row, int64_t rows)
      : row(row),
        rows(rows),
        count(divide_up(rows > 0 ? rows : 1, kTileRows)),
        low_(rows / count),
        higher_(rows % count) {}
  Share of(int64_t t) const { return {begin(t), begin(t + 1)}; }
  int height() const { return static_cast<int>(low_ + (higher_ > 0)); }

 private:
  int64_t begin(int64_t t) const { return t * low_ + least(t, higher_); }
  int64_t low_, higher_;  // rows of a low tile, and how many are one higher
};

// The tiles' rows of A at depths [depth, depth + kc), in panels that lie `stride` words apart.
template <class Word>
void pack_rows(const MatrixRef& a, int64_t a_rows, const RowTiles& tiles, int64_t depth, int64_t kc,
               int64_t stride, Word* block) {
  with_dtype(a.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<Word, float> || std::is_same_v<T, bf16>) {
      // Where rows lie side by side, a few k of all of them at a time read memory in order.
      const int64_t step = a.row_stride == 1 && a.col_stride != 1 ? 16 : kc;
      for (int64_t i = 0; i < kc; i += step)
        for (int64_t t = 0; t < tiles.count; ++t) {
          const Share own = tiles.of(t);
          const int64_t row = tiles.row + own.begin;
          pack_panel<kTileRows>(at<T>(a, row, depth + i), a.row_stride, a.col_stride, a_rows - row,
                                static_cast<int>(own.end - own.begin), least(step, kc - i),
                                block + t * stride + i / kDepthOf<Word> * kTileRows);
        }
    }
  });
  // The second half of a pair of B is zero there: what it meets must not be infinite, and -0 leaves
  // even a sum of -0 alone.
  if constexpr (std::is_same_v<Word, float>)
    for (int64_t t = 0; kc % 2 && t < tiles.count; ++t)
      for (int l = 0; l < kTileRows; ++l) block[t * stride + kc * kTileRows + l] = -0.0f;
}

// The products of one thread, tile by tile.
template <class Word>
class Blocked {
 public:
  Blocked(const GemmParams& p, const GemmPlan& plan)
      : p_(p),
        plan_(plan),
        b_(p.b, p.n, p.k),
        gate_(p.gate, p.n, p.k),
        cut_(plan.kc < p.k),
        rows_in_place_(reads_rows_in_place(p)) {}

  // `next`, where given, is multiplied after this: what its matrices span is fetched meanwhile.
  void multiply(Share rows, Share panels, const GemmParams* next) {
    if (next) {
      const int64_t turns = divide_up(rows.end - rows.begin, kTileRows) *
                            (panels.end - panels.begin) * words(p_.k) / kWordsPerTurn;
      upcoming_.a = whole(next->a, p_.m, p_.k, turns / 2);
      upcoming_.b = whole(next->b.matrix, p_.k, p_.n, turns / 2);
    }
    const int64_t step = plan_.nc / kTileCols;
    for (int64_t q = panels.begin; q < panels.end; q += step)
      for (int64_t row = rows.begin; row < rows.end; row += plan_.mc)
        multiply_block({row, least(plan_.mc, rows.end - row)}, {q, least(q + step, panels.end)});
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

  // Panels that a set of tiles covers, and where their sums are: [panel][tile][row][column].
  struct Strip {
    int64_t panel, count;
    int vectors;
    int64_t sums;
  };

  // A part of the block's depth: one chain of sums.
  struct Piece {
    int64_t depth, kc;
    bool first, last;  // of all k
  };

  // The tiles of one block: their rows, where A is packed, and where their sums wait.
  void multiply_block(const RowTiles& tiles, Share panels) {
    tiles_ = &tiles;
    // An odd depth next to pairs of B reads one more k of A; stores run over the end of a panel.
    stride_ = words(plan_.kc + 1) * kTileRows + kLanes;
    block_ = scratch_of<Word>(Scratch::rows, tiles.count * stride_);
    const int vectors = tile_vectors(tiles.height(), tiles.count == 1 && widens_pairs(b_));
    const int64_t wide = panels_of_tiles(vectors);
    room_ = scratch_of<Word>(Scratch::panels, Strips<Word>::room(wide, plan_.chain));
    const int64_t waiting = (cut_ ? panels.end - panels.begin : wide) * tiles.count * kTileSize;
    sums_ = scratch_of<float>(Scratch::tile, p_.gated ? 2 * waiting : waiting);
    gate_sums_ = p_.gated ? sums_ + waiting : nullptr;
    for (int64_t depth = 0; depth == 0 || depth < p_.k; depth += plan_.kc) {
      depth_ = depth;
      kc_ = least(plan_.kc, p_.k - depth);
      if (!rows_in_place_) pack_rows(p_.a, p_.m, tiles, depth, kc_, stride_, block_);
      for (int64_t panel = panels.begin; panel < panels.end;) {
        // What is left over at the right edge gets tiles of one panel.
        const bool fits = panel + wide <= panels.end;
        Strip strip = {panel, fits ? wide : 1, fits ? vectors : kTileVectors, 0};
        if (cut_) strip.sums = (panel - panels.begin) * tiles.count * kTileSize;
        multiply_strip(strip);
        panel += strip.count;
      }
    }
  }

  // All tiles of the block against some panels of B, and of the gate.
  void multiply_strip(const Strip& strip) {
    const auto sums_of = [&](float* from, int64_t t) -> Sums {
      return {from + strip.sums + t * kTileSize, kTileCols, tiles_->count * kTileSize};
    };
    if (p_.gated)
      each_tile(gate_, strip, [&](const Piece& piece, int64_t t, int, int, auto&& run) {
        const Sums sums = sums_of(gate_sums_, t);
        run(piece.first ? Sums{} : sums, sums);
      });
    const int64_t edge = p_.n - strip.panel * kTileCols;
    const bool plain = edge >= strip.count * kTileCols && is_plain(p_);
    each_tile(b_, strip, [&](const Piece& piece, int64_t t, int begin, int end, auto&& run) {
      const Sums sums = sums_of(sums_, t);
      const bool direct = piece.last && plain;
      if (piece.last)
        for (int i = begin; i < end; ++i) prefetch_patch(p_, patch(strip, t, i));
      run(piece.first ? Sums{} : sums, direct ? out_of(strip, t) : sums);
      if (!piece.last || direct) return;
      for (int i = begin; i < end; ++i) finish(strip, t, i, sums);
    });
  }

  // Panel i of the strip beside the rows of tile t.
  Patch patch(const Strip& strip, int64_t t, int i) const {
    const Share rows = tiles_->of(t);
    const int64_t col = (strip.panel + i) * kTileCols;
    return {.row = tiles_->row + rows.begin,
            .col = col,
            .rows = static_cast<int>(rows.end - rows.begin),
            .cols = static_cast<int>(least(kTileCols, p_.n - col))};
  }

  Sums out_of(const Strip& strip, int64_t t) const {
    const Patch at = patch(strip, t, 0);
    return {static_cast<float*>(p_.out) + at.row * p_.out_stride + at.col, p_.out_stride,
            kTileCols};
  }

  void finish(const Strip& strip, int64_t t, int i, const Sums& sums) {
    const Patch at = patch(strip, t, i);
    const int64_t offset = i * sums.panel;
    finish_tile(p_, sums.data + offset,
                p_.gated ? gate_sums_ + (sums.data - sums_) + offset : nullptr, kTileCols,
                PanelBias(p_.bias, at.col, at.cols), PanelBias(p_.gate_bias, at.col, at.cols), at);
  }

  // Calls f(piece, t, begin, end, run) for every tile t of every piece; run(from, to) multiplies
  // it, after which the panels [begin, end) of the strip are done with that piece for its rows.
  template <class F>
  void each_tile(const Strips<Word>& b, const Strip& strip, F&& f) {
    for (int64_t done = 0; done == 0 || done < kc_; done += plan_.chain) {
      const int64_t depth = depth_ + done, kc = least(plan_.chain, kc_ - done);
      const Piece piece = {depth, kc, depth == 0, depth + kc >= p_.k};
      with_panels(b, strip, piece, [&](const auto& panels) {
        fetch_ahead(b, strip, piece, panels);
        for (int v = 0; v < kTileVectors * strip.count; v += strip.vectors)
          for (int64_t t = 0; t < tiles_->count; ++t)
            f(piece, t, v / kTileVectors, (v + strip.vectors) / kTileVectors,
              [&](const Sums& from, const Sums& to) {
                run_tile(piece, t, strip.vectors, v, panels, from, to);
              });
      });
    }
  }

  // Calls f with the strip's panels over the piece: where they lie, or packed or widened into L1.
  template <class F>
  void with_panels(const Strips<Word>& b, const Strip& strip, const Piece& piece, F&& f) {
    if constexpr (std::is_same_v<Word, float>) {
      // Widening in register costs less than widening into L1 does, unless for many tiles.
      constexpr int64_t kFewTiles = 4;
      if (b.packed() && tiles_->count <= kFewTiles && b.dtype() == DType::f16)
        return f(b.template packed_panels<f16>(strip.panel, piece.depth));
      if (tiles_->count <= kFewTiles && strip.vectors != 3 && widens_pairs(b))
        return f(b.template packed_panels<bf16x2>(strip.panel, piece.depth));
    }
    if (b.in_place(strip.panel, strip.count)) return f(b.panels_in_place(strip.panel, piece.depth));
    f(b.panels(strip.panel, strip.count, piece.depth, piece.kc, room_));
  }

  // Whether tiles can widen pairs in register. Those of 4 × 3 have no register left for it.
  static bool widens_pairs(const Strips<Word>& b) {
    return std::is_same_v<Word, float> && b.packed() && b.dtype() == DType::bf16;
  }

  // What is read in place is small; of packed panels, tiles over several fetch by themselves.
  template <class B>
  void fetch_ahead(const Strips<Word>& b, const Strip& strip, const Piece& piece,
                   const Panels<B>& panels) {
    upcoming_.panel = {};
    const bool moved = static_cast<const void*>(panels.data) == room_;
    if (!moved && (!b.packed() || strip.count > 1)) return;
    upcoming_.panel = b.upcoming(strip.panel, strip.count, piece.depth, piece.kc, tiles_->count);
    const int64_t tiles = tiles_->count * (kTileVectors * strip.count / strip.vectors);
    upcoming_.panel.spread_over(tiles * (piece.kc / kDepthOf<B> / kWordsPerTurn));
  }

  // Tile t at vector v of the panels, over a piece.
  template <class B>
  void run_tile(const Piece& piece, int64_t t, int vectors, int v, const Panels<B>& panels,
                const Sums& from, const Sums& to) {
    const int panel = v / kTileVectors, half = v % kTileVectors;
    const Panels<B> b = {panels.data + panel * panels.panel, panels.ld, panels.panel};
    const Sums was = {from.data ? from.data + panel * from.panel : nullptr, from.ld, from.panel};
    const Sums now = {to.data + panel * to.panel, to.ld, to.panel};
    const Share own = tiles_->of(t);
    const int rows = static_cast<int>(own.end - own.begin);
    const int64_t count = divide_up(piece.kc, kDepthOf<B>);
    if constexpr (std::is_same_v<B, float>)
      if (rows_in_place_) {
        const float* a = at<float>(p_.a, tiles_->row + own.begin, piece.depth);
        return any_tile(rows, vectors, half, count, RowsInPlace{a, p_.a.row_stride}, b, upcoming_,
                        was, now);
      }
    const Word* a = block_ + t * stride_ + words(piece.depth - depth_) * kTileRows;
    any_tile(rows, vectors, half, count, PackedRows<Word>{a}, b, upcoming_, was, now);
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

  const RowTiles* tiles_ = nullptr;
  int64_t stride_ = 0, depth_ = 0, kc_ = 0;
  Word *block_ = nullptr, *room_ = nullptr;
  float *sums_ = nullptr, *gate_sums_ = nullptr;
};

}  // namespace lanewise::LANEWISE_TARGET
