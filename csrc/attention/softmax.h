// Softmax down the lanes of a panel, block of rows by block of rows (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018).
#pragma once

#include "attention/panel.h"

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
  float sum[kPanelCols];     // of exp(score − max)
  float factor[kPanelCols];  // what sums over earlier rows must be multiplied by

  void start() {
    for (int c = 0; c < kPanelCols; ++c) {
      max[c] = -__builtin_inff();
      sum[c] = 0.0f;
    }
  }

  // A column whose scores are all −inf so far subtracts 0, not −inf, which would give NaN; so does
  // one that met +inf, whose sum then is +inf unless some score is NaN.
  static LANEWISE_INLINE f32v pivot(f32v m) {
    return abs(m) == __builtin_inff() ? broadcast(0.0f) : m;
  }

  // Rows summed apart before they join the total: short sums of short sums err less than one long
  // chain.
  static constexpr int64_t kRun = 16;

  // scores become exp(score − max), max being the new one.
  void update(float* scores, int64_t rows) {
    f32v top[kPanelVectors], total[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) top[v] = load(max + v * kLanes);
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        top[v] = lanewise::LANEWISE_TARGET::max(top[v], load(scores + r * kPanelCols + v * kLanes));
    for (int v = 0; v < kPanelVectors; ++v) {
      const f32v old = load(max + v * kLanes);
      store(max + v * kLanes, top[v]);
      top[v] = pivot(top[v]);
      const f32v keep = exp(old - top[v]);
      store(factor + v * kLanes, keep);
      total[v] = load(sum + v * kLanes) * keep;
    }
    for (int64_t first = 0; first < rows; first += kRun) {
      const int64_t end = first + kRun < rows ? first + kRun : rows;
      f32v part[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) part[v] = broadcast(0.0f);
      for (int64_t r = first; r < end; ++r)
        for (int v = 0; v < kPanelVectors; ++v) {
          float* at = scores + r * kPanelCols + v * kLanes;
          const f32v weight = exp(load(at) - top[v]);
          part[v] += weight;
          store(at, weight);
        }
      for (int v = 0; v < kPanelVectors; ++v) total[v] += part[v];
    }
    for (int v = 0; v < kPanelVectors; ++v) store(sum + v * kLanes, total[v]);
  }

  // One more score per column, which takes weight and adds no value; −inf where there is none. A
  // column that met nothing stays so.
  void add_sink(const float* sink) {
    for (int v = 0; v < kPanelCols; v += kLanes) {
      const f32v old = load(max + v), total = load(sum + v), score = load(sink + v);
      const f32v top = lanewise::LANEWISE_TARGET::max(old, score);
      const f32v keep = exp(old - pivot(top));
      store(max + v, top);
      store(sum + v, select(total == 0.0f, total, total * keep + exp(score - pivot(top))));
      store(factor + v, keep);
    }
  }

  // The log of the sum of exponentials, and in `factor` what normalises the sums over rows; −inf
  // and 0 for a column that met nothing.
  void finish(const float* sink, float* lse) {
    add_sink(sink);
    for (int v = 0; v < kPanelCols; v += kLanes) {
      const f32v total = load(sum + v);
      const i32v nothing = total == 0.0f;
      // A total of +inf weighs its scores inf / inf, yet the log of their sum, top being +inf, is
      // so.
      const f32v scale = select(total == __builtin_inff(), broadcast(__builtin_nanf("")),
                                load(factor + v) / total);
      store(factor + v, select(nothing, broadcast(0.0f), scale));
      const f32v known = select(total == total, load(max + v) + log_positive(total), total);
      store(lse + v, select(nothing, broadcast(-__builtin_inff()), known));
    }
  }
};

}  // namespace lanewise::LANEWISE_TARGET
