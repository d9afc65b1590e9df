// What turns products into scores, on a panel: softcap, ALiBi, bias and masks, each free where it
// is not asked for, and masks free on the rows that they leave alone.
#pragma once

#include "attention/kernel.h"
#include "attention/panel.h"

namespace lanewise::LANEWISE_TARGET {

// What a score weighs beside a maximum or an lse: e^(score − log). All three are natural numbers on
// one grid of float32, so that a query's only key weighs exactly 1 in the gradients as well, whose
// scores are the same to the last bit. The constant's own rounding stands for another base than e,
// one part in 10^8 away and the same for every weight.
LANEWISE_INLINE f32v weight_of(f32v score, f32v log) { return exp2(score - log, 0x1.715476p0f); }

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  int64_t size() const { return end - begin; }
};

// The options of one call, seen from panels whose columns are queries (forward, dQ) or keys (dK,
// dV).
struct ScoreOptions {
  int64_t before, after;  // a column meets rows position − before … position + after; −1: unbounded
  float softcap;
  bool alibi;
  BiasType bias_type;
  const void* bias;
  int64_t bias_row;  // stride
};

// The columns of one panel. Columns beyond `count` repeat the last one, so that a loop over whole
// vectors reads what is there.
struct Columns {
  int count;
  int64_t position[kPanelCols];  // the row that each stands at; never decreasing
  float slope[kPanelCols];
  int64_t bias[kPanelCols];  // offset of each one's bias at row 0
  bool bias_same;            // one offset for all: a row's bias is a single number
  bool bias_adjacent;        // offsets that count up: a row's bias is a vector

  int64_t first() const { return position[0]; }
  int64_t last() const { return position[kPanelCols - 1]; }

  // describe(c) sets entry c.
  template <class F>
  LANEWISE_INLINE void fill(int columns, F&& describe) {
    count = columns;
    bias_same = bias_adjacent = true;
    for (int c = 0; c < kPanelCols; ++c) {
      if (c < columns) {
        describe(c);
        bias_same &= bias[c] == bias[0];
        bias_adjacent &= bias[c] == bias[0] + c;
      } else {
        position[c] = position[columns - 1];
        slope[c] = slope[columns - 1];
        bias[c] = bias[columns - 1];
      }
    }
  }
};

LANEWISE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
LANEWISE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LANEWISE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The rows of `all` that columns standing at first … last meet, at least one of them.
LANEWISE_INLINE Range rows_met(const ScoreOptions& o, int64_t first, int64_t last, Range all) {
  return {o.before < 0 ? all.begin : larger(all.begin, first - o.before),
          o.after < 0 ? all.end : smaller(all.end, last + o.after + 1)};
}

// Adds f(row) lane by lane: score[r][v] = f(score[r][v], r, v).
template <class F>
LANEWISE_INLINE void for_each_vector(float* scores, int64_t rows, F&& f) {
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kPanelVectors; ++v) {
      float* at = scores + r * kPanelCols + v * kLanes;
      store(at, f(load(at), r, v));
    }
}

// The factor that products need: to be scores, or what the cap is applied to.
LANEWISE_INLINE float product_scale(double scale, float softcap) {
  return static_cast<float>(softcap != 0.0f ? scale / softcap : scale);
}

// With `derivative`, also leaves the cap's own derivative 1 − tanh² there.
inline void apply_softcap(float cap, int64_t rows, float* scores, float* derivative) {
  for_each_vector(scores, rows, [&](f32v s, int64_t r, int v) {
    const f32v t = tanh(s);
    if (derivative) store(derivative + r * kPanelCols + v * kLanes, 1.0f - t * t);
    return t * cap;
  });
}

inline void apply_alibi(const Columns& c, Range rows, float* scores) {
  float distance[kPanelCols];
  for (int i = 0; i < kPanelCols; ++i) distance[i] = static_cast<float>(c.position[i] - rows.begin);
  for_each_vector(scores, rows.size(), [&](f32v s, int64_t r, int v) {
    const f32v d = abs(load(distance + v * kLanes) - static_cast<float>(r));
    return s - load(c.slope + v * kLanes) * d;
  });
}

// Boolean bias in numbers: 0 attends, −inf masks.
LANEWISE_INLINE float bias_value(const uint8_t* p) { return *p ? 0.0f : -__builtin_inff(); }
LANEWISE_INLINE float bias_value(const auto* p) { return to_float(*p); }

LANEWISE_INLINE f32v bias_lanes(const uint8_t* p, int64_t count) {
  f32v lanes = broadcast(0.0f);
  for (int i = 0; i < kLanes && i < count; ++i) lanes[i] = bias_value(p + i);
  return lanes;
}
LANEWISE_INLINE f32v bias_lanes(const auto* p, int64_t count) { return load_some(p, count); }

// bias[r][c] of a panel whose columns differ.
template <class T>
inline void gather_bias(const T* data, int64_t row_stride, const Columns& c, Range rows,
                        float* panel) {
  if (c.bias_adjacent) {
    for (int64_t r = 0; r < rows.size(); ++r)
      for (int v = 0; v < kPanelCols; v += kLanes)
        store(panel + r * kPanelCols + v,
              v < c.count
                  ? bias_lanes(data + c.bias[0] + v + (rows.begin + r) * row_stride, c.count - v)
                  : broadcast(0.0f));
    return;
  }
  if (row_stride != 1) {
    for (int64_t r = 0; r < rows.size(); ++r)
      for (int i = 0; i < kPanelCols; ++i)
        panel[r * kPanelCols + i] = bias_value(data + c.bias[i] + (rows.begin + r) * row_stride);
    return;
  }
  for (int v = 0; v < kPanelCols; v += kLanes)
    for (int64_t r = 0; r < rows.size(); r += kLanes) {
      f32v tile[kLanes];
      for (int i = 0; i < kLanes; ++i)
        tile[i] = bias_lanes(data + c.bias[v + i] + rows.begin + r, rows.size() - r);
      transpose(tile);
      for (int i = 0; i < kLanes && r + i < rows.size(); ++i)
        store(panel + (r + i) * kPanelCols + v, tile[i]);
    }
}

// A masked score is −inf whatever it was, NaN included; an additive bias is added.
template <bool BOOLEAN>
LANEWISE_INLINE f32v with_bias(f32v score, f32v bias) {
  if constexpr (BOOLEAN) return bias == 0.0f ? score : bias;
  return score + bias;
}

template <class T>
inline void apply_bias(const T* data, int64_t row_stride, const Columns& c, Range rows,
                       float* scores, float* panel) {
  constexpr bool kBoolean = sizeof(T) == 1;
  if (c.bias_same) {
    const T* row = data + c.bias[0] + rows.begin * row_stride;
    for_each_vector(scores, rows.size(), [&](f32v s, int64_t r, int) {
      return with_bias<kBoolean>(s, broadcast(bias_value(row + r * row_stride)));
    });
    return;
  }
  gather_bias(data, row_stride, c, rows, panel);
  for_each_vector(scores, rows.size(), [&](f32v s, int64_t r, int v) {
    return with_bias<kBoolean>(s, load(panel + r * kPanelCols + v * kLanes));
  });
}

// Calls apply with the bias as what it is, if there is one.
template <class F>
LANEWISE_INLINE void with_bias_type(const ScoreOptions& o, F&& apply) {
  switch (o.bias_type) {
    case BiasType::none:
      return;
    case BiasType::f32:
      return apply(static_cast<const float*>(o.bias));
    case BiasType::bf16:
      return apply(static_cast<const bf16*>(o.bias));
    case BiasType::f16:
      return apply(static_cast<const f16*>(o.bias));
    case BiasType::boolean:
      return apply(static_cast<const uint8_t*>(o.bias));
  }
}

// A row index as the lanes compare it: relative to the range's first, far ones clipped.
LANEWISE_INLINE int32_t clip(int64_t row) {
  constexpr int64_t kFar = 1 << 30;
  return static_cast<int32_t>(row < -kFar ? -kFar : row > kFar ? kFar : row);
}

// Masks the rows of the range that some column does not meet.
inline void apply_window(const ScoreOptions& o, const Columns& c, Range rows, float* scores) {
  const Range open = {o.before < 0 ? rows.begin : larger(rows.begin, c.last() - o.before),
                      o.after < 0 ? rows.end : smaller(rows.end, c.first() + o.after + 1)};
  if (open.begin <= rows.begin && open.end >= rows.end) return;
  int32_t low[kPanelCols], high[kPanelCols];
  for (int i = 0; i < kPanelCols; ++i) {
    const int64_t position = c.position[i] - rows.begin;
    low[i] = clip(o.before < 0 ? -rows.size() : position - o.before);
    high[i] = clip(o.after < 0 ? rows.size() : position + o.after);
  }
  i32v lowest[kPanelVectors], highest[kPanelVectors];
  __builtin_memcpy(lowest, low, sizeof low);
  __builtin_memcpy(highest, high, sizeof high);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (row >= open.begin && row < open.end) {
      row = open.end - 1;
      continue;
    }
    const i32v here = broadcast(static_cast<int32_t>(row - rows.begin));
    for (int v = 0; v < kPanelVectors; ++v) {
      float* at = scores + (row - rows.begin) * kPanelCols + v * kLanes;
      const i32v met = (here >= lowest[v]) & (here <= highest[v]);
      store(at, select(met, load(at), broadcast(-__builtin_inff())));
    }
  }
}

// `scores` holds the scaled products of `rows`; `derivative` (or null) and `bias_panel` are panels
// of as many rows.
inline void apply_options(const ScoreOptions& o, const Columns& c, Range rows, float* scores,
                          float* derivative, float* bias_panel) {
  if (o.softcap != 0.0f) apply_softcap(o.softcap, rows.size(), scores, derivative);
  if (o.alibi) apply_alibi(c, rows, scores);
  with_bias_type(
      o, [&](const auto* data) { apply_bias(data, o.bias_row, c, rows, scores, bias_panel); });
  if (o.before >= 0 || o.after >= 0) apply_window(o, c, rows, scores);
}

// The same for the scores of one column that lie side by side, to whole vectors; those past the end
// of `rows` are masked.
inline void apply_row_options(const ScoreOptions& o, const Columns& c, int column, Range rows,
                              float* scores) {
  const int64_t count = rows.size();
  const auto for_each = [&](auto&& f) LANEWISE_LAMBDA {
    for (int64_t i = 0; i < count; i += kLanes) store(scores + i, f(load(scores + i), i));
  };
  if (o.softcap != 0.0f) for_each([&](f32v s, int64_t) { return tanh(s) * o.softcap; });
  const int64_t position = c.position[column] - rows.begin;
  const i32v lane = lane_index();
  const f32v lane_float = __builtin_convertvector(lane, f32v);
  if (o.alibi)
    for_each([&](f32v s, int64_t i) {
      return s - abs(lane_float + static_cast<float>(i - position)) * c.slope[column];
    });
  const auto add_bias = [&](const auto* data) {
    data += c.bias[column] + rows.begin * o.bias_row;
    for_each([&](f32v s, int64_t i) {
      f32v bias = broadcast(0.0f);
      if (o.bias_row == 1)
        bias = bias_lanes(data + i, count - i);
      else
        for (int l = 0; l < kLanes && i + l < count; ++l)
          bias[l] = bias_value(data + (i + l) * o.bias_row);
      return with_bias<sizeof *data == 1>(s, bias);
    });
  };
  with_bias_type(o, add_bias);
  const int32_t low = clip(o.before < 0 ? 0 : larger(position - o.before, 0));
  const int32_t high = clip(o.after < 0 ? count : smaller(position + o.after + 1, count));
  if (low > 0 || high < static_cast<int32_t>(ceil_div(count, kLanes) * kLanes))
    for_each([&](f32v s, int64_t i) {
      const i32v here = lane + static_cast<int32_t>(i);
      return select((here >= low) & (here < high), s, broadcast(-__builtin_inff()));
    });
}

}  // namespace lanewise::LANEWISE_TARGET
