// The register tile: ROWS × (kTileVectors · kLanes) outputs held in registers while k runs.
//
// Budget, 16 registers (AVX2, SSE2): 6 rows × 2 vectors = 12 accumulators, 2 vectors of B, one
// broadcast of A, one spare. 32 registers (AVX-512, NEON): 14 × 2 = 28 accumulators and 2 of B; A
// is broadcast by the FMA's own memory operand (AVX-512) or by lane. Each k costs ROWS · 2 FMAs
// against ROWS + 2 loads, so the FMA units bind, not the load ports; 12 chains cover the FMA
// latency (4–5 cycles on two units).
#pragma once

#include "gemm/words.h"

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kTileRows = kRegisters == 32 ? 14 : 6;
inline constexpr int kTileVectors = 2;
inline constexpr int kTileCols = kTileVectors * kLanes;

// Rows of A as a tile reads them, a word at a time: packed side by side, or where they lie.
template <class Word>
struct PackedRows {
  using Element = Word;
  const Word* data;
  Word word(int row) const { return data[row]; }
  void advance(int words) { data += words * kTileRows; }
  PackedRows from(int64_t words) const { return {data + words * kTileRows}; }
};
struct RowsInPlace {
  using Element = float;
  const float* data;
  int64_t stride;
  float word(int row) const { return data[row * stride]; }
  void advance(int words) { data += words; }
  RowsInPlace from(int64_t words) const { return {data + words, stride}; }
};

// sums[r][:] += a[r] · b[:], over the k of one word of B. Where A is float32 and B pairs, a word of
// B meets two of A, one after the other.
template <int ROWS, class A, class B>
LANEWISE_INLINE void multiply_word(A& a, const B* b, f32v (&sums)[ROWS][kTileVectors]) {
  decltype(load(b)) bv[kTileVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kTileVectors; ++v) bv[v] = load(b + v * kLanes);
  constexpr bool kTwo = kDepthOf<B> > kDepthOf<typename A::Element>;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const auto av = broadcast(a.word(r));
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      if constexpr (kTwo)
        sums[r][v] += av * widen_even(bv[v]);
      else
        sums[r][v] = multiply_add(av, bv[v], sums[r][v]);
    }
  }
  a.advance(1);
  if constexpr (kTwo) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto av = broadcast(a.word(r));
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] += av * widen_odd(bv[v]);
    }
    a.advance(1);
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

// What a tile fetches: the panel that comes next, and the operands of the product after this one.
struct Fetches {
  Upcoming panel, a, b;
  LANEWISE_INLINE void fetch() {
    panel.fetch();
    a.fetch();
    b.fetch();
  }
};

// Words of B between two turns of what is fetched.
inline constexpr int64_t kWordsPerTurn = 8;

// acc[r][:] += Σ a[i][r] · b[i·ldb + :] over the words i of B.
// CHAINS words at a time go into sums of their own: a few rows do not cover the FMA's latency.
template <int ROWS, int CHAINS, class A, class B>
LANEWISE_INLINE void multiply_tile(int64_t words, A a, const B* b, int64_t ldb,
                                   Fetches& upcoming, f32v (&acc)[ROWS][kTileVectors]) {
  static_assert(kWordsPerTurn % CHAINS == 0);
  int64_t i = 0;
  f32v chains[CHAINS][ROWS][kTileVectors] = {};
  while (i + CHAINS <= words) {
    upcoming.fetch();
    const int64_t turn = i + kWordsPerTurn < words ? i + kWordsPerTurn : words;
    for (; i + CHAINS <= turn; i += CHAINS)
#pragma GCC unroll 4
      for (int c = 0; c < CHAINS; ++c, b += ldb) multiply_word<ROWS>(a, b, chains[c]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < CHAINS; ++c)
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v)
        acc[r][v] = c ? acc[r][v] + chains[c][r][v] : chains[c][r][v];
  for (; i < words; ++i, b += ldb) multiply_word<ROWS>(a, b, acc);
}

// Chains of sums where the whole product has `ROWS` rows. (Never fewer rows of a higher product:
// the order of its sums must not depend on how its rows are cut.)
template <int ROWS>
inline constexpr int kChainsOf = ROWS == 1   ? 4
                                 : ROWS <= 3 ? 2
                                             : 1;

// Where a tile of sums lies; null is nowhere.
struct Sums {
  float* data;
  int64_t ld;
};

// to = from + a · b, whole tiles of kTileCols columns; `from.data` null is zero. What is there
// already is added last: a sum of short sums errs less than one long chain.
template <int ROWS, int CHAINS, class A, class B>
void tile(int64_t words, A a, const B* b, int64_t ldb, Fetches& upcoming, Sums from,
          Sums to) {
  f32v acc[ROWS][kTileVectors];
  multiply_tile<ROWS, CHAINS>(words, a, b, ldb, upcoming, acc);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      const int at = v * kLanes;
      const f32v sum = from.data ? load(from.data + r * from.ld + at) + acc[r][v] : acc[r][v];
      store(to.data + r * to.ld + at, sum);
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
