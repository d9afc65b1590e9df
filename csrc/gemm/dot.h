// Products of few rows with weights that are contiguous in k, as nn.Linear stores them: dot
// products along k, nothing packed, every weight read once and widened in register.
#pragma once

#include <type_traits>

#include "gemm/tile.h"

namespace lanewise::LANEWISE_TARGET {

// Rows of x at a time: their products with 3 lines of the weight (16 registers) or 6 (32) are 12 or
// 24 accumulators, and leave registers for the loads. Fewer rows take more lines, to have as many
// chains of sums; five and six are still better off together, with fewer lines, than apart.
inline constexpr int kDotRows = 4, kMostDotRowsAtOnce = 6;
constexpr int dot_rows(int rows) { return rows <= kMostDotRowsAtOnce ? rows : kDotRows; }
inline constexpr int kDotChains = kRegisters == 32 ? 24 : 12;
template <int ROWS, class T>
constexpr int dot_lines() {
  // Pairs take registers to widen.
  if (std::is_same_v<T, bf16> && !kMultipliesPairs) {
    if (kRegisters == 16 && ROWS == 2) return 4;
    if (kRegisters == 32 && ROWS == 4) return 5;
  }
  return kDotChains / ROWS < 6 ? kDotChains / ROWS : 6;
}

// How a row of x lies in memory beside a weight of type T: elements of k that one step multiplies,
// and words of x that it reads. Beside bfloat16, whose vectors come apart into even and odd
// elements of k, float32 rows are in that order too: kLanes even ones, then their odd neighbours.
template <class T>
struct DotStep {
  using Word = float;
  static constexpr int kDepth = kLanes, kWords = kLanes;
};
template <>
struct DotStep<bf16> {
  using Word = std::conditional_t<kMultipliesPairs, bf16x2, float>;
  static constexpr int kDepth = 2 * kLanes, kWords = kMultipliesPairs ? kLanes : 2 * kLanes;
};

// Words of x for a depth of k, whole steps: what is missing is zero.
template <class T>
constexpr int64_t dot_words(int64_t k) {
  return (k + DotStep<T>::kDepth - 1) / DotStep<T>::kDepth * DotStep<T>::kWords;
}

LANEWISE_INLINE auto load_step(const float* w) { return load(w); }
LANEWISE_INLINE auto load_step(const f16* w) { return load(w); }
LANEWISE_INLINE auto load_step(const bf16* w) { return load(reinterpret_cast<const bf16x2*>(w)); }

// One row of x as the steps read it.
template <class T>
void arrange_row(const T* x, int64_t stride, int64_t k, typename DotStep<T>::Word* to) {
  constexpr int kDepth = DotStep<T>::kDepth;
  for (int64_t i = 0; i < k; i += kDepth, to += DotStep<T>::kWords) {
    T strip[kDepth];
    const T* from = x + i;
    if (stride != 1 || i + kDepth > k) {
      for (int e = 0; e < kDepth; ++e) strip[e] = i + e < k ? x[(i + e) * stride] : T{};
      from = strip;
    }
    const auto step = load_step(from);
    if constexpr (DotStep<T>::kWords > kLanes) {
      store(to, widen_even(step));
      store(to + kLanes, widen_odd(step));
    } else {
      store(to, step);
    }
  }
}

// acc[r][l] += x[r] · w[l] over one step.
template <int ROWS, int LINES, class T, class X>
LANEWISE_INLINE void dot_step(const X* x, int64_t ldx, const T* w, int64_t ldw,
                              f32v (&acc)[ROWS][LINES]) {
  if constexpr (DotStep<T>::kWords == kLanes) {
    decltype(load(x)) xv[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) xv[r] = load(x + r * ldx);
#pragma GCC unroll 8
    for (int l = 0; l < LINES; ++l) {
      const auto wv = load_step(w + l * ldw);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) acc[r][l] = multiply_add(xv[r], wv, acc[r][l]);
    }
  } else {
#pragma GCC unroll 8
    for (int l = 0; l < LINES; ++l) {
      const pairs wv = load_step(w + l * ldw);
      const f32v even = widen_even(wv), odd = widen_odd(wv);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) acc[r][l] += load(x + r * ldx) * even;
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) acc[r][l] += load(x + r * ldx + kLanes) * odd;
    }
  }
}

// c[r · ldc + l] = (accumulate ? c : 0) + Σ_i x[r][i] · w[l · ldw + i], i < k. Where `ahead` is not
// 0, fetches the lines that lie so many elements further on: at a few kilobytes a line, the
// machine's own prefetchers start anew on each.
template <int ROWS, int LINES, class T, class X>
void dot_tile(int64_t k, const X* x, int64_t ldx, const T* w, int64_t ldw, int64_t ahead, float* c,
              int64_t ldc, bool accumulate) {
  constexpr int kDepth = DotStep<T>::kDepth;
  f32v acc[ROWS][LINES] = {};
  int64_t i = 0;
  const auto steps = [&](auto fetching) LANEWISE_LAMBDA {
    for (; i + kDepth <= k; i += kDepth, x += DotStep<T>::kWords) {
      dot_step<ROWS, LINES>(x, ldx, w + i, ldw, acc);
      if constexpr (decltype(fetching)::value)
#pragma GCC unroll 8
        for (int l = 0; l < LINES; ++l) __builtin_prefetch(w + i + ahead + l * ldw, 0, 3);
    }
  };
  if (ahead)
    steps(std::true_type{});
  else
    steps(std::false_type{});
  if (i < k) {
    T rest[LINES][kDepth] = {};
    for (int l = 0; l < LINES; ++l)
      for (int64_t e = i; e < k; ++e) rest[l][e - i] = w[l * ldw + e];
    dot_step<ROWS, LINES>(x, ldx, rest[0], kDepth, acc);
  }
  float sums[(ROWS * LINES + kLanes - 1) / kLanes * kLanes];
#pragma GCC unroll 8
  for (int first = 0; first < ROWS * LINES; first += kLanes) {
    f32v chunk[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const int at = first + j;
      chunk[j] = at < ROWS * LINES ? acc[at / LINES][at % LINES] : f32v{};
    }
    store(sums + first, sum_each(chunk));
  }
  for (int r = 0; r < ROWS; ++r)
    for (int l = 0; l < LINES; ++l) {
      float& sum = c[r * ldc + l];
      sum = accumulate ? sum + sums[r * LINES + l] : sums[r * LINES + l];
    }
}

// Elements of k at a time. Where many rows pass, the lines of a group stay in L1 meanwhile; where
// all pass at once, sums are folded only where the chains of the lanes would grow too long.
inline constexpr int64_t kDotDepth = 1024, kDotDepthAtOnce = 512 * kLanes;

// c[r · ldc + l] for all `rows` of x and `lines` of the weight, LINES at a time. `far`: the weight
// comes from beyond L2, and is fetched a group ahead.
template <int LINES, class T, class X>
void dot_products(int64_t k, const X* x, int64_t ldx, int rows, const T* w, int64_t ldw, int lines,
                  bool far, float* c, int64_t ldc) {
  constexpr int kMostRows =
      kDotChains / LINES < kMostDotRowsAtOnce ? kDotChains / LINES : kMostDotRowsAtOnce;
  const int passes = (rows + dot_rows(rows) - 1) / dot_rows(rows);
  const int64_t most = passes == 1 ? kDotDepthAtOnce : kDotDepth;
  const auto group = [&]<int N>(int l, Rows<N>) {
    for (int64_t depth = 0; depth == 0 || depth < k; depth += most) {
      const int64_t kc = k - depth < most ? k - depth : most;
      for (int pass = 0; pass < passes; ++pass) {
        // Of equal height within one: 9 rows are 3 + 3 + 3, as 4 + 4 + 1 would leave FMA units
        // idle.
        const int r = rows * pass / passes, height = rows * (pass + 1) / passes - r;
        with_rows<kMostRows>(height, [&]<int ROWS>(Rows<ROWS>) {
          dot_tile<ROWS, N>(kc, x + r * ldx + dot_words<T>(depth), ldx, w + l * ldw + depth, ldw,
                            far && pass == 0 ? LINES * ldw : 0, c + r * ldc + l, ldc, depth > 0);
        });
      }
    }
  };
  int l = 0;
  for (; l + LINES <= lines; l += LINES) group(l, Rows<LINES>{});
  if (l < lines) with_rows<LINES>(lines - l, [&]<int N>(Rows<N> rest) { group(l, rest); });
}

}  // namespace lanewise::LANEWISE_TARGET
