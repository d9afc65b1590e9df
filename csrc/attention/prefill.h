// Many queries: their scores with a block of keys at a time, the softmax and the sums of values,
// all on panels of queries.
#pragma once

#include "attention/blocks.h"
#include "attention/partial.h"
#include "attention/softmax.h"

namespace lanewise::LANEWISE_TARGET {

struct PrefillBuffers {
  float *q, *out, *scores, *bias, *k, *v;

  PrefillBuffers(const AttentionParams& p, const Blocking& b) {
    carve({{&q, b.columns * p.dim},
           {&out, b.columns * p.value_dim},
           {&scores, b.rows * kPanelCols},
           {&bias, p.bias_type == BiasType::none ? 0 : b.rows * kPanelCols},
           {&k, b.rows * p.dim},
           {&v, b.rows * p.value_dim}});
  }
};

// Columns of a query stack from n0 on, over a range of keys.
template <class T>
class Prefill {
 public:
  Prefill(const Blocking& b, const QueryStack& s, int64_t n0, Range range)
      : p(s.p),
        options(query_options(p)),
        blocking(b),
        stack(s),
        buffers(p, b),
        keys(range),
        begin(n0),
        end(smaller(n0 + b.columns, s.size())),
        panels(static_cast<int>(ceil_div(end - n0, kPanelCols))) {
    fill(scale, kPanelCols, product_scale(p.scale, p.softcap));
  }

  // To the outputs, where the range is all there is, or to the sums of one piece.
  void run(const Partial* partial) {
    const Range all = rows_met(options, stack.position(begin), stack.position(end - 1), keys);
    const auto k = key_rows<T>(p, p.k, p.k_strides, stack.sequence, stack.kv_head);
    const auto v = key_rows<T>(p, p.v, p.v_strides, stack.sequence, stack.kv_head);
    for (int i = 0; i < panels; ++i) start(i);
    for (int64_t row = blocking.first(all); row < all.end; row += blocking.rows) {
      const Range block = blocking.block(row, all);
      const bool reused = panels > 1;
      const Tokens k_block = as_float32(k, block, p.dim, reused, buffers.k);
      const Tokens v_block = as_float32(v, block, p.value_dim, reused, buffers.v);
      for (int i = 0; i < panels; ++i) attend(i, block, k_block, v_block);
    }
    for (int i = 0; i < panels; ++i) {
      if (!started[i]) fill(out_panel(i), kPanelCols * p.value_dim, 0.0f);
      partial ? leave(i, *partial) : finish(i);
    }
  }

 private:
  int64_t first_column(int i) const { return begin + static_cast<int64_t>(i) * kPanelCols; }
  int columns_of(int i) const {
    return static_cast<int>(smaller(kPanelCols, end - first_column(i)));
  }
  float* q_panel(int i) const { return buffers.q + i * kPanelCols * p.dim; }
  float* out_panel(int i) const { return buffers.out + i * kPanelCols * p.value_dim; }

  void start(int i) {
    const int64_t n0 = first_column(i);
    stack.describe(n0, columns_of(i), columns[i]);
    softmax[i].start();
    started[i] = false;
    const T* rows[kPanelCols];
    stack.rows(static_cast<const T*>(p.q), p.q_strides, n0, columns[i].count, rows);
    pack_columns(rows, columns[i].count, p.dim, q_panel(i));
  }

  void attend(int i, Range block, Tokens k, Tokens v) {
    const Range rows = rows_met(options, columns[i].first(), columns[i].last(), block);
    if (rows.empty()) return;
    const int64_t skip = rows.begin - block.begin;
    meet(k.from(skip), rows.size(), p.dim, q_panel(i), scale, buffers.scores);
    apply_options(options, columns[i], rows, buffers.scores, nullptr, buffers.bias);
    softmax[i].update(buffers.scores, rows.size());
    mix(v.from(skip), rows.size(), p.value_dim, buffers.scores, out_panel(i),
        started[i] ? Into::rescale : Into::zero, softmax[i].factor);
    started[i] = true;
  }

  void finish(int i) {
    const int64_t n0 = first_column(i);
    float sink[kPanelCols], lse[kPanelCols];
    stack.sinks(n0, columns[i].count, sink);
    softmax[i].finish(sink, lse);
    for (int c = 0; c < columns[i].count; ++c) {
      p.lse[stack.stats(n0 + c)] = lse[c];
      if (lse[c] == -__builtin_inff()) clear_column(out_panel(i), c, p.value_dim);
    }
    T* rows[kPanelCols];
    stack.rows(static_cast<T*>(p.out), p.out_strides, n0, columns[i].count, rows);
    unpack_columns(out_panel(i), columns[i].count, p.value_dim, softmax[i].factor, rows);
  }

  void leave(int i, const Partial& partial) {
    const int64_t n0 = first_column(i);
    float one[kPanelCols], *rows[kPanelCols];
    fill(one, kPanelCols, 1.0f);
    for (int c = 0; c < columns[i].count; ++c) {
      partial.max[n0 + c] = softmax[i].max[c];
      partial.sum[n0 + c] = softmax[i].sum[c];
      rows[c] = partial.out + (n0 + c) * p.value_dim;
      if (softmax[i].sum[c] == 0.0f) clear_column(out_panel(i), c, p.value_dim);
    }
    unpack_columns(out_panel(i), columns[i].count, p.value_dim, one, rows);
  }

  const AttentionParams& p;
  const ScoreOptions options;
  const Blocking& blocking;
  const QueryStack stack;
  const PrefillBuffers buffers;
  const Range keys;
  const int64_t begin, end;  // columns of the stack
  const int panels;
  float scale[kPanelCols];
  Columns columns[kMaxPanels];
  Softmax softmax[kMaxPanels];
  bool started[kMaxPanels];
};

}  // namespace lanewise::LANEWISE_TARGET
