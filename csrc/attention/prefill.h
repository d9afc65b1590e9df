// Many queries: their scores with a block of keys at a time, the softmax and the sums of values,
// all on panels of queries.
#pragma once

#include "attention/blocks.h"
#include "attention/partial.h"
#include "attention/softmax.h"

namespace lanewise::LANEWISE_TARGET {

// The products of one unit, by vectors of float32.
template <class T>
class VectorProducts {
 public:
  static constexpr int64_t kMostColumns = 128;  // of a unit

  // What the thread needs meanwhile.
  struct Setting {
    Setting() {}
  };

  VectorProducts(const AttentionParams& params, const Blocking& b)
      : p(params), out_rows(p.value_dim) {
    carve({{&q_, b.columns * p.dim},
           {&out_, b.columns * p.value_dim},
           {&scores_, b.rows * kPanelCols},
           {&bias, p.bias_type == BiasType::none ? 0 : b.rows * kPanelCols},
           {&k_buffer_, b.rows * p.dim},
           {&v_buffer_, b.rows * p.value_dim}});
    fill(scale_, kPanelCols, product_scale(p.scale, p.softcap));
  }

  // Panel i of queries, a row of q for each column.
  void own(int i, const T* const* rows, int columns) {
    pack_columns(rows, columns, p.dim, q_panel(i));
  }

  // The block of keys that come next; `reused`: by several panels.
  void hold(Range block, const TokenRows<T>& k, const TokenRows<T>& v, bool reused) {
    block_ = block;
    k_ = as_float32(k, block, p.dim, reused, k_buffer_);
    v_ = as_float32(v, block, p.value_dim, reused, v_buffer_);
  }

  // Scaled products of panel i and some keys of the block.
  float* meet(int i, Range keys) {
    lanewise::LANEWISE_TARGET::meet(k_.from(keys.begin - block_.begin), keys.size(), p.dim,
                                    q_panel(i), scale_, scores_);
    return scores_;
  }

  void weigh(Range keys, Softmax& softmax) { softmax.update(scores_, keys.size()); }

  // Their weights have taken the place of the scores, and meet the values.
  void mix(int i, Range keys, bool started, const float* factor) {
    lanewise::LANEWISE_TARGET::mix(v_.from(keys.begin - block_.begin), keys.size(), p.value_dim,
                                   scores_, out(i), started ? Into::rescale : Into::zero, factor);
  }

  float* out(int i) const { return out_ + i * kPanelCols * out_rows; }

 private:
  float* q_panel(int i) const { return q_ + i * kPanelCols * p.dim; }

  const AttentionParams& p;
  float *q_, *out_, *scores_, *k_buffer_, *v_buffer_;
  float scale_[kPanelCols];
  Range block_;
  Tokens k_, v_;

 public:
  const int64_t out_rows;  // of a panel of outputs
  float* bias;             // a panel as tall as a block, where there is a bias
};

// Columns of a query stack from n0 on, over a range of keys.
template <class T, class Products>
class Prefill {
 public:
  Prefill(const Blocking& b, const QueryStack& s, int64_t n0, Range range)
      : p(s.p),
        options(query_options(p)),
        blocking(b),
        stack(s),
        keys(range),
        begin(n0),
        end(smaller(n0 + b.columns, s.size())),
        panels(static_cast<int>(ceil_div(end - n0, kPanelCols))),
        products(p, b) {}

  // To the outputs, where the range is all there is, or to the sums of one piece.
  void run(const Partial* partial) {
    const typename Products::Setting setting;
    const Range all = rows_met(options, stack.position(begin), stack.position(end - 1), keys);
    const auto k = key_rows<T>(p, p.k, p.k_strides, stack.sequence, stack.kv_head);
    const auto v = key_rows<T>(p, p.v, p.v_strides, stack.sequence, stack.kv_head);
    for (int i = 0; i < panels; ++i) start(i);
    for (int64_t row = blocking.first(all); row < all.end; row += blocking.rows) {
      const Range block = blocking.block(row, all);
      products.hold(block, k, v, panels > 1);
      for (int i = 0; i < panels; ++i) attend(i, block);
    }
    for (int i = 0; i < panels; ++i) {
      if (!started[i]) fill(products.out(i), kPanelCols * p.value_dim, 0.0f);
      partial ? leave(i, *partial) : finish(i);
    }
  }

 private:
  int64_t first_column(int i) const { return begin + static_cast<int64_t>(i) * kPanelCols; }
  int columns_of(int i) const {
    return static_cast<int>(smaller(kPanelCols, end - first_column(i)));
  }

  void start(int i) {
    const int64_t n0 = first_column(i);
    stack.describe(n0, columns_of(i), columns[i]);
    softmax[i].start();
    started[i] = false;
    const T* rows[kPanelCols];
    stack.rows(static_cast<const T*>(p.q), p.q_strides, n0, columns[i].count, rows);
    products.own(i, rows, columns[i].count);
  }

  void attend(int i, Range block) {
    const Range rows = rows_met(options, columns[i].first(), columns[i].last(), block);
    if (rows.empty()) return;
    float* scores = products.meet(i, rows);
    apply_options(options, columns[i], rows, scores, nullptr, products.bias);
    products.weigh(rows, softmax[i]);
    products.mix(i, rows, started[i], softmax[i].factor);
    started[i] = true;
  }

  void finish(int i) {
    const int64_t n0 = first_column(i);
    float sink[kPanelCols], lse[kPanelCols];
    stack.sinks(n0, columns[i].count, sink);
    softmax[i].finish(sink, lse);
    for (int c = 0; c < columns[i].count; ++c) {
      p.lse[stack.stats(n0 + c)] = lse[c];
      if (lse[c] == -__builtin_inff()) clear_column(products.out(i), c, p.value_dim);
    }
    T* rows[kPanelCols];
    stack.rows(static_cast<T*>(p.out), p.out_strides, n0, columns[i].count, rows);
    unpack_columns(products.out(i), columns[i].count, p.value_dim, softmax[i].factor, rows);
  }

  void leave(int i, const Partial& partial) {
    const int64_t n0 = first_column(i);
    float one[kPanelCols], *rows[kPanelCols];
    fill(one, kPanelCols, 1.0f);
    for (int c = 0; c < columns[i].count; ++c) {
      partial.max[n0 + c] = softmax[i].max[c];
      partial.sum[n0 + c] = softmax[i].sum[c];
      rows[c] = partial.out + (n0 + c) * p.value_dim;
      if (softmax[i].sum[c] == 0.0f) clear_column(products.out(i), c, p.value_dim);
    }
    unpack_columns(products.out(i), columns[i].count, p.value_dim, one, rows);
  }

  const AttentionParams& p;
  const ScoreOptions options;
  const Blocking& blocking;
  const QueryStack stack;
  const Range keys;
  const int64_t begin, end;  // columns of the stack
  const int panels;
  Products products;
  Columns columns[kMaxPanels];
  Softmax softmax[kMaxPanels];
  bool started[kMaxPanels];
};

}  // namespace lanewise::LANEWISE_TARGET
