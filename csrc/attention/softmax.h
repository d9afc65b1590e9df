// Softmax down the lanes of a panel, block of rows by block of rows (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018).
#pragma once

#include "attention/scores.h"

namespace lanewise::LANEWISE_TARGET {

// log x for positive normal x: x = m · 2^e with m in [√½, √2), log m = 2 artanh((m − 1)/(m + 1)).
LANEWISE_INLINE f32v log_positive(f32v x) {
  const i32v bits = as_int(x) - 0x3f3504f3;  // √½'s bits: the borrow puts m in its range
  const i32v exponent = bits >> 23;
  const f32v m = as_float((bits & 0x007fffff) + 0x3f3504f3);
  const f32v e = __builtin_convertvector(exponent, f32v);
  const f32v s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  f32v series = broadcast(1.0f / 9);
  series = series * s2 + 1.0f / 7;
  series = series * s2 + 1.0f / 5;
  series = series * s2 + 1.0f / 3;
  return e * 0.693147181f + 2.0f * (s + s * s2 * series);
}

// What is known of every column's softmax after some of its rows.
struct Softmax {
  float max[kPanelCols];
  float sum[kPanelCols];     // of e^(score − max)
  float factor[kPanelCols];  // what sums over earlier rows must be multiplied by

  void start() {
    for (int c = 0; c < kPanelCols; ++c) {
      max[c] = -__builtin_inff();
      sum[c] = 0.0f;
    }
  }

  // Rows summed apart before they join the total: short sums of short sums err less than one long
  // chain.
  static constexpr int64_t kRun = 16;

  // scores become e^(score − max), max being the new one.
  void update(float* scores, int64_t rows) {
    f32v top[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) top[v] = load(max + v * kLanes);
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        top[v] = lanewise::LANEWISE_TARGET::max(top[v], load(scores + r * kPanelCols + v * kLanes));
    if (raise(top))
      weigh<true>(scores, rows);
    else
      weigh<false>(scores, rows);
  }

  // New maxima, and whether one of them is +inf, which takes the weights' second version.
  bool raise(const f32v (&top)[kPanelVectors]) {
    bool infinite = false;
    for (int v = 0; v < kPanelVectors; ++v) {
      rescale(v * kLanes, top[v]);
      // (As a number: among the maxima themselves a NaN could hide it.)
      const f32v is_infinite = select(top[v] == __builtin_inff(), broadcast(1.0f), broadcast(0.0f));
      infinite |= lanewise::LANEWISE_TARGET::max(is_infinite) > 0.0f;
    }
    return infinite;
  }

  // A column whose scores are all −inf so far subtracts 0, not −inf, which would give NaN.
  static LANEWISE_INLINE f32v pivot(f32v top) {
    return select(top == -__builtin_inff(), broadcast(0.0f), top);
  }

  // Beside a score of +inf, which weighs +inf, finite ones weigh nothing and NaN stays.
  template <bool INFINITE>
  static LANEWISE_INLINE f32v weight(f32v score, f32v pivot) {
    const f32v w = weight_of(score, pivot);
    return INFINITE ? select(score == __builtin_inff(), score, w) : w;
  }

  // The same in three steps, where the scores of a column lie side by side: the maxima of new
  // scores, the weights of each column and their sum, the sums of all.
  void raise(const float* top) {
    for (int v = 0; v < kPanelCols; v += kLanes)
      rescale(v, lanewise::LANEWISE_TARGET::max(load(max + v), load(top + v)));
  }
  float weigh_row(int column, float* scores, int64_t count) const {
    const f32v top = pivot(broadcast(max[column]));
    return max[column] == __builtin_inff() ? weigh_row<true>(top, scores, count)
                                           : weigh_row<false>(top, scores, count);
  }
  void add(const float* sums) {
    for (int v = 0; v < kPanelCols; v += kLanes) store(sum + v, load(sum + v) + load(sums + v));
  }

  // Takes in what another softmax knows, after other rows: its sums must be multiplied by `weight`,
  // this one's by `factor`.
  void join(const float* other_max, const float* other_sum, float* weight_of_other) {
    for (int v = 0; v < kPanelCols; v += kLanes) {
      const f32v other = load(other_max + v);
      rescale(v, lanewise::LANEWISE_TARGET::max(load(max + v), other));
      const f32v w = weight<true>(other, pivot(load(max + v)));
      store(weight_of_other + v, w);
      store(sum + v, load(sum + v) + load(other_sum + v) * w);
    }
  }

  // One more score per column, which takes weight and adds no value; −inf where there is none. A
  // column that met nothing stays so.
  void add_sink(const float* sink) {
    for (int v = 0; v < kPanelCols; v += kLanes) {
      const f32v score = load(sink + v), met = load(sum + v);
      rescale(v, lanewise::LANEWISE_TARGET::max(load(max + v), score));
      const f32v total = load(sum + v) + weight<true>(score, pivot(load(max + v)));
      store(sum + v, select(met == 0.0f, met, total));
    }
  }

  // The log of the sum of exponentials, and in `factor` what normalises the sums over rows; −inf
  // and 0 for a column that met nothing.
  void finish(const float* sink, float* lse) {
    add_sink(sink);
    for (int v = 0; v < kPanelCols; v += kLanes) {
      const f32v total = load(sum + v), top = load(max + v);
      const i32v nothing = total == 0.0f;
      // A total of +inf weighs its scores inf / inf, yet the log of their sum is so.
      const f32v scale = select(total == __builtin_inff(), broadcast(__builtin_nanf("")),
                                load(factor + v) / total);
      store(factor + v, select(nothing, broadcast(0.0f), scale));
      // A query's only key has a total of 1, whose log is exactly 0: its score is the lse.
      const f32v known = select(total == total, top + log_positive(total), total);
      const f32v log = select(total == __builtin_inff(), total, known);
      store(lse + v, select(nothing, broadcast(-__builtin_inff()), log));
    }
  }

 private:
  void rescale(int column, f32v top) {
    const f32v old = load(max + column);
    const f32v keep = select(old == top, broadcast(1.0f), weight_of(old, top));
    store(max + column, top);
    store(factor + column, keep);
    store(sum + column, load(sum + column) * keep);
  }

  template <bool INFINITE>
  static float weigh_row(f32v top, float* scores, int64_t count) {
    f32v total = broadcast(0.0f);
    for (int64_t i = 0; i < count; i += kLanes) {
      const f32v w = weight<INFINITE>(load(scores + i), top);
      total += w;
      store(scores + i, w);
    }
    return lanewise::LANEWISE_TARGET::sum(total);
  }

  template <bool INFINITE>
  void weigh(float* scores, int64_t rows) {
    f32v top[kPanelVectors], total[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      top[v] = pivot(load(max + v * kLanes));
      total[v] = load(sum + v * kLanes);
    }
    for (int64_t first = 0; first < rows; first += kRun) {
      const int64_t end = first + kRun < rows ? first + kRun : rows;
      f32v part[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) part[v] = broadcast(0.0f);
      for (int64_t r = first; r < end; ++r)
        for (int v = 0; v < kPanelVectors; ++v) {
          float* at = scores + r * kPanelCols + v * kLanes;
          const f32v w = weight<INFINITE>(load(at), top[v]);
          part[v] += w;
          store(at, w);
        }
      for (int v = 0; v < kPanelVectors; ++v) total[v] += part[v];
    }
    for (int v = 0; v < kPanelVectors; ++v) store(sum + v * kLanes, total[v]);
  }
};

}  // namespace lanewise::LANEWISE_TARGET
