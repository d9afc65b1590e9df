// The register tile: ROWS × VECTORS · kLanes outputs held in registers while k runs.
//
// Budget, 16 registers (AVX2, SSE2): 6 rows × 2 vectors = 12 accumulators, 2 vectors of B, one
// broadcast of A, one spare. 32 registers (AVX-512, NEON): 14 × 2 = 28 accumulators, 2 of B and one
// broadcast. Each k costs ROWS · VECTORS FMAs against ROWS + VECTORS loads, so the FMA units bind,
// not the load ports.
//
// An FMA takes 4 or 5 cycles and two start in each (four on arm64): fewer than 10 (16) chains of
// sums leave the units idle. So low tiles are wide, and reach over several panels of B: 4 × 3,
// 3 × 4, 2 × 6. No sum is ever split into several chains along k: a row has the same bits whatever
// the number of rows beside it.
#pragma once

#include "gemm/words.h"

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kTileRows = kRegisters == 32 ? 14 : 6;
inline constexpr int kTileVectors = 2;  // of the highest tile, and of a panel of B
inline constexpr int kTileCols = kTileVectors * kLanes;

// Vectors of B beside so many rows: as many accumulators as registers allow, which are fewer where
// pairs are widened on the way. (One that has to live in memory costs a third of the speed.)
constexpr int tile_vectors(int rows, bool widens = false) {
  if (rows == 1) return 6;
  if (kRegisters == 32) return rows == 2 ? 6 : rows <= (widens ? 5 : 6) ? 4 : 2;
  if (widens) return rows <= 3 ? 4 : 2;
  return rows == 2 ? 6 : rows == 3 ? 4 : rows == 4 ? 3 : 2;
}

// Panels that tiles of so many vectors cover evenly: one tile does, or two of three vectors.
constexpr int panels_of_tiles(int vectors) { return vectors % 2 ? vectors : vectors / 2; }

// Rows of A as a tile reads them, a word at a time: packed side by side, or where they lie.
template <class Word>
struct PackedRows {
  using Element = Word;
  const Word* data;
  Word word(int row) const { return data[row]; }
  void advance(int words) { data += words * kTileRows; }
};
struct RowsInPlace {
  using Element = float;
  const float* data;
  int64_t stride;
  float word(int row) const { return data[row * stride]; }
  void advance(int words) { data += words; }
};

// Panels of B: word i of column c of panel p at data[p · panel + i · ld + c].
template <class Word>
struct Panels {
  using Element = Word;
  const Word* data;
  int64_t ld = kTileCols;
  int64_t panel = 0;
};

// Where vector v of a tile is that begins in half HALF of its first panel.
template <int HALF>
constexpr int panel_of(int v) {
  return (HALF + v) / kTileVectors;
}
template <int HALF>
constexpr int column_of(int v) {
  return (HALF + v) % kTileVectors * kLanes;
}

// Whether words of B are pairs that widen in register.
template <class A, class B>
inline constexpr bool kWidens = kDepthOf<B> > kDepthOf<typename A::Element>;

// sums[r][v] += a[r] · b[v], over the k of one word of B. Where A is float32 and B pairs, a word of
// B meets two of A, one after the other.
template <int ROWS, int VECTORS, int HALF, class A, class B>
LANEWISE_INLINE void multiply_word(A& a, const B* const* panels, f32v (&sums)[ROWS][VECTORS]) {
  const auto multiply = [&](auto widen) LANEWISE_LAMBDA {
    const auto vector = [&](int v) LANEWISE_LAMBDA {
      return widen(load(panels[panel_of<HALF>(v)] + column_of<HALF>(v)));
    };
    if constexpr (kWidens<A, B> && kRegisters == 16 && ROWS > 2 && VECTORS > kTileVectors) {
      // No register is left to keep either of the two; a broadcast for every product takes loads,
      // which have slots to spare.
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        __asm__ volatile("" ::: "memory");  // or the compiler keeps them after all
        const auto bv = vector(v);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
          sums[r][v] = multiply_add(broadcast(a.word(r)), bv, sums[r][v]);
      }
    } else if constexpr (ROWS < VECTORS) {  // the fewer of the two stay in registers
      decltype(broadcast(a.word(0))) av[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) av[r] = broadcast(a.word(r));
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        const auto bv = vector(v);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sums[r][v] = multiply_add(av[r], bv, sums[r][v]);
      }
    } else {
      decltype(vector(0)) bv[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) bv[v] = vector(v);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const auto av = broadcast(a.word(r));
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = multiply_add(av, bv[v], sums[r][v]);
      }
    }
    a.advance(1);
  };
  if constexpr (kWidens<A, B>) {
    multiply([](pairs v) LANEWISE_LAMBDA { return widen_even(v); });
    multiply([](pairs v) LANEWISE_LAMBDA { return widen_odd(v); });
  } else {
    multiply([](auto v) LANEWISE_LAMBDA { return v; });
  }
}

// Memory that is needed next, fetched into L2 line by line while tiles multiply: its pieces are too
// short for the machine's own prefetchers, and a burst of requests would hold up the tile's loads.
class Upcoming {
 public:
  Upcoming() = default;
  // `pieces` of `bytes` each, `stride` bytes apart.
  Upcoming(const void* data, int64_t pieces, int64_t stride, int64_t bytes)
      : next_(static_cast<const char*>(data)),
        end_(next_ + bytes),
        pieces_(pieces),
        stride_(stride - (bytes + kLine - 1) / kLine * kLine),
        bytes_(bytes) {}

  void spread_over(int64_t turns) {
    const int64_t lines = pieces_ * ((bytes_ + kLine - 1) / kLine);
    each_turn_ = turns > 0 ? (lines + turns - 1) / turns : 0;
  }

  bool empty() const { return each_turn_ == 0; }

  LANEWISE_INLINE void fetch() {
    for (int64_t i = 0; i < each_turn_; ++i) {
      __builtin_prefetch(next_, 0, 2);
      next_ += kLine;
      if (next_ < end_) continue;
      if (--pieces_ <= 0) return void(each_turn_ = 0);
      next_ += stride_;
      end_ = next_ + bytes_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *next_ = nullptr, *end_ = nullptr;
  int64_t pieces_ = 0, stride_ = 0, bytes_ = 0, each_turn_ = 0;
};

// What tiles fetch: the panel that comes next; of the product after this one, first A, then B.
struct Fetches {
  Upcoming panel, a, b;
  LANEWISE_INLINE void fetch() {
    panel.fetch();
    if (a.empty())
      b.fetch();
    else
      a.fetch();
  }
};

// Words of B between two turns of what is fetched.
inline constexpr int64_t kWordsPerTurn = 8;

// How far ahead panels are fetched that are read from end to end: as far as memory's latency asks.
inline constexpr int64_t kAhead = 4096;  // bytes

// The lines of a panel's row that come that much later, into L1.
template <class B>
LANEWISE_INLINE void fetch_row(const B* row) {
  const char* next = reinterpret_cast<const char*>(row) + kAhead;
#pragma GCC unroll 2
  for (int64_t byte = 0; byte < kTileCols * static_cast<int64_t>(sizeof(B)); byte += 64)
    __builtin_prefetch(next + byte, 0, 3);
}

// acc = a · b over `words` words of B. Tiles over several panels fetch what lies a little further
// on in each; one panel is a single stream that the machine follows by itself.
template <int ROWS, int VECTORS, int HALF, class A, class B>
LANEWISE_INLINE void multiply_tile(int64_t words, A a, const Panels<B>& b, Fetches& upcoming,
                                   f32v (&acc)[ROWS][VECTORS]) {
  constexpr int kPanels = panel_of<HALF>(VECTORS - 1) + 1;
  const B* panels[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) panels[p] = b.data + p * b.panel;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = f32v{};
  for (int64_t i = 0; i < words;) {
    upcoming.fetch();
    const int64_t turn = i + kWordsPerTurn < words ? i + kWordsPerTurn : words;
    for (; i < turn; ++i) {
      if constexpr (kPanels > 1)
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) fetch_row(panels[p]);
      multiply_word<ROWS, VECTORS, HALF>(a, panels, acc);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) panels[p] += b.ld;
    }
  }
}

// Where the sums of a tile lie, panel by panel; null is nowhere.
struct Sums {
  float* data;
  int64_t ld;
  int64_t panel;
};

// to = from + a · b; `from.data` null is zero. What is there already is added last: a sum of short
// sums errs less than one long chain.
template <int ROWS, int VECTORS, int HALF, class A, class B>
void tile(int64_t words, A a, const Panels<B>& b, Fetches& upcoming, const Sums& from,
          const Sums& to) {
  f32v acc[ROWS][VECTORS];
  multiply_tile<ROWS, VECTORS, HALF>(words, a, b, upcoming, acc);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      const int panel = panel_of<HALF>(v), col = column_of<HALF>(v);
      const float* was = from.data + r * from.ld + panel * from.panel + col;
      store(to.data + r * to.ld + panel * to.panel + col,
            from.data ? load(was) + acc[r][v] : acc[r][v]);
    }
}

// Calls f(Rows<rows>{}) for a run-time row count, 1 ≤ rows ≤ N.
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

// Multiplies `vectors` vectors of columns that begin in half `half` of the first panel of b.
// (Structs by reference: a copy made of halves just written waits for them to reach the cache.)
template <class A, class B>
void any_tile(int rows, int vectors, int half, int64_t words, const A& a, const Panels<B>& b,
              Fetches& upcoming, const Sums& from, const Sums& to) {
  with_rows(rows, [&]<int ROWS>(Rows<ROWS>) {
    constexpr int kWide = tile_vectors(ROWS, kWidens<A, B>);
    if (vectors == kTileVectors)
      return tile<ROWS, kTileVectors, 0>(words, a, b, upcoming, from, to);
    // Beside a tile of four rows there may be one of three.
    if constexpr ((kWide == 3 || tile_vectors(ROWS + 1) == 3) && !kWidens<A, B>) {
      if (vectors == 3 && half == 0) return tile<ROWS, 3, 0>(words, a, b, upcoming, from, to);
      if (vectors == 3) return tile<ROWS, 3, 1>(words, a, b, upcoming, from, to);
    }
    if constexpr (kWide > kTileVectors && kWide != 3)
      tile<ROWS, kWide, 0>(words, a, b, upcoming, from, to);
  });
}

}  // namespace lanewise::LANEWISE_TARGET
