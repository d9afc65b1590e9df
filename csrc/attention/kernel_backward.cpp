// Gradients without a score matrix in memory and without atomics: every pass recomputes the weights
// P = exp(S − lse) of its blocks, and every element of a gradient has one owner that sums in a
// fixed order. With δ = rowsum(dO ∘ O) − dlse (Dao et al., "FlashAttention", 2022, appendix B):
//   dS = P ∘ (dO·Vᵀ − δ),  dQ = scale · dS·K,  dK = scale · dSᵀ·Q,  dV = Pᵀ·dO,  dbias = dS.
#include "attention/blocks.h"
#include "attention/kernel.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Whether a query attended nothing: it has no gradient and gives none, whatever NaN it would meet.
LANEWISE_INLINE bool dead(float lse) { return lse == -__builtin_inff(); }

// A log as the scores are, bounded as they are.
LANEWISE_INLINE float in_base_2(float lse) {
  const float log = lse * kLog2E;
  return __builtin_isinf(log) && !__builtin_isinf(lse) ? __builtin_copysignf(kLargest, log) : log;
}

// scores become P, products (dO·Vᵀ) become dS.
template <class LseOf, class DeltaOf>
LANEWISE_INLINE void score_gradients(float* scores, float* products, int64_t rows, LseOf lse,
                                     DeltaOf delta) {
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = r * kPanelCols + v * kLanes;
      const f32v weight = exp2(load(scores + at) - lse(r, v));
      store(scores + at, weight);
      store(products + at, weight * (load(products + at) - delta(r, v)));
    }
}

// Through the cap: dS of the capped score times its derivative.
LANEWISE_INLINE void uncap(const float* derivative, int64_t rows, float* gradients) {
  for_each_vector(gradients, rows, [&](f32v g, int64_t r, int v) {
    return g * load(derivative + r * kPanelCols + v * kLanes);
  });
}

// --- δ -------------------------------------------------------------------------------------------

template <class T>
void deltas(const AttentionBackwardParams& b, const Sequence& s, int64_t head) {
  const AttentionParams& p = b.forward;
  const TokenRows<T> outs = query_rows<T>(p.out, p.out_strides, s, head);
  const TokenRows<T> grads = query_rows<T>(b.grad_out, b.grad_out_strides, s, head);
  const int64_t stats = stats_of(p, s, head);
  for (int64_t query = 0; query < s.queries; ++query) {
    const T *out = outs.row(query), *grad = grads.row(query);
    f32v total = broadcast(0.0f);
    for (int64_t i = 0; i < p.value_dim; i += kLanes)
      total += load_some(out + i, p.value_dim - i) * load_some(grad + i, p.value_dim - i);
    const int64_t at = stats + query;
    b.delta[at] = dead(p.lse[at]) ? 0.0f : sum(total) - (b.grad_lse ? b.grad_lse[at] : 0.0f);
  }
}

// --- dQ: columns are queries, rows keys
// -------------------------------------------------------------

template <class T>
class QueryGradients {
 public:
  static constexpr int64_t kScorePanels = 2;

  QueryGradients(const AttentionBackwardParams& params, const Blocking& bl, const Sequence& s,
                 int64_t kv_head, int64_t n0)
      : b(params),
        p(params.forward),
        blocking(bl),
        options(query_options(p)),
        stack(p, s, kv_head),
        begin(n0),
        end(smaller(n0 + bl.columns, stack.size())),
        panels(static_cast<int>(ceil_div(end - n0, kPanelCols))) {
    const int64_t scores_size = blocking.rows * kPanelCols;
    carve({{&q, blocking.columns * p.dim},
           {&grad_out, blocking.columns * p.value_dim},
           {&grad_q, blocking.columns * p.dim},
           {&scores, scores_size},
           {&products, scores_size},
           {&derivative, p.softcap != 0 ? scores_size : 0},
           {&bias, p.bias_type == BiasType::none ? 0 : scores_size},
           {&k, blocking.rows * p.dim},
           {&v, blocking.rows * p.value_dim}});
    fill(scale, kPanelCols, product_scale(p.scale, p.softcap));
  }

  void run() {
    for (int i = 0; i < panels; ++i) start(i);
    const Range all =
        rows_met(options, stack.position(begin), stack.position(end - 1), {0, stack.sequence.keys});
    const auto k_head = key_rows<T>(p, p.k, p.k_strides, stack.sequence, stack.kv_head);
    const auto v_head = key_rows<T>(p, p.v, p.v_strides, stack.sequence, stack.kv_head);
    for (int64_t row = blocking.first(all); row < all.end; row += blocking.rows) {
      const Range block = blocking.block(row, all);
      const Tokens keys = as_float32(k_head, block, p.dim, panels > 1, k);
      const Tokens values = as_float32(v_head, block, p.value_dim, panels > 1, v);
      for (int i = 0; i < panels; ++i) attend(i, block, keys, values);
    }
    for (int i = 0; i < panels; ++i) finish(i);
  }

 private:
  int64_t first_column(int i) const { return begin + static_cast<int64_t>(i) * kPanelCols; }

  void start(int i) {
    const int64_t n0 = first_column(i);
    const int count = static_cast<int>(smaller(kPanelCols, end - n0));
    stack.describe(n0, count, columns[i]);
    const T* from[kPanelCols];
    stack.rows(static_cast<const T*>(p.q), p.q_strides, n0, count, from);
    pack_columns(from, count, p.dim, q + i * kPanelCols * p.dim);
    stack.rows(static_cast<const T*>(b.grad_out), b.grad_out_strides, n0, count, from);
    pack_columns(from, count, p.value_dim, grad_out + i * kPanelCols * p.value_dim);
    fill(grad_q + i * kPanelCols * p.dim, kPanelCols * p.dim, 0.0f);
    fill(lse[i], kPanelCols, 0.0f);
    fill(delta[i], kPanelCols, 0.0f);
    for (int c = 0; c < count; ++c) {
      lse[i][c] = in_base_2(p.lse[stack.stats(n0 + c)]);
      delta[i][c] = b.delta[stack.stats(n0 + c)];
    }
  }

  void attend(int i, Range block, Tokens keys, Tokens values) {
    const Range rows = rows_met(options, columns[i].first(), columns[i].last(), block);
    if (rows.empty()) return;
    keys = keys.from(rows.begin - block.begin);
    values = values.from(rows.begin - block.begin);
    meet(keys, rows.size(), p.dim, q + i * kPanelCols * p.dim, scale, scores);
    apply_options(options, columns[i], rows, scores, derivative, bias);
    meet(values, rows.size(), p.value_dim, grad_out + i * kPanelCols * p.value_dim, nullptr,
         products);
    score_gradients(
        scores, products, rows.size(), [&](int64_t, int v) { return load(lse[i] + v * kLanes); },
        [&](int64_t, int v) { return load(delta[i] + v * kLanes); });
    if (p.softcap != 0) uncap(derivative, rows.size(), products);
    mix(keys, rows.size(), p.dim, products, grad_q + i * kPanelCols * p.dim, Into::accumulate);
  }

  void finish(int i) {
    for (int c = 0; c < columns[i].count; ++c)
      if (dead(lse[i][c])) clear_column(grad_q + i * kPanelCols * p.dim, c, p.dim);
    T* to[kPanelCols];
    stack.rows(static_cast<T*>(b.grad_q), b.grad_q_strides, first_column(i), columns[i].count, to);
    float natural[kPanelCols];
    fill(natural, kPanelCols, p.scale);
    unpack_columns(grad_q + i * kPanelCols * p.dim, columns[i].count, p.dim, natural, to);
  }

  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const Blocking& blocking;
  const ScoreOptions options;
  const QueryStack stack;
  const int64_t begin, end;  // columns of the stack
  const int panels;
  float scale[kPanelCols];
  float *q, *grad_out, *grad_q, *scores, *products, *derivative, *bias, *k, *v;
  Columns columns[kMaxPanels];
  float lse[kMaxPanels][kPanelCols], delta[kMaxPanels][kPanelCols];
};

// --- dK, dV, dbias: columns are keys, rows queries
// ---------------------------------------------------

// The options as panels of keys meet them. Key j stands at query j − (keys − queries), and the
// window is seen from its other end.
ScoreOptions key_options(const AttentionParams& p) {
  ScoreOptions o = query_options(p);
  o.before = p.window_right;
  o.after = p.window_left;
  o.bias_row = p.bias_query;
  return o;
}

void describe_keys(const AttentionParams& p, const Sequence& s, int64_t head, int64_t j0, int count,
                   Columns& columns) {
  columns.fill(count, [&](int c) {
    const int64_t j = j0 + c, batch = s.batch;
    columns.position[c] = j - (s.keys - s.queries);
    columns.slope[c] =
        p.slopes ? kLog2E * p.slopes[batch * p.slopes_batch + head * p.slopes_head] : 0.0f;
    columns.bias[c] = batch * p.bias_batch + head * p.bias_head + j * p.bias_key;
  });
}

// One query head's rows, as the panels of keys meet them.
template <class T>
struct QueryRows {
  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const ScoreOptions options;
  float scale[kPanelCols];
  float *q_buffer, *grad_buffer, *scores, *products, *derivative, *bias;
  int64_t stats;
  Range block;
  Tokens queries, gradients;

  explicit QueryRows(const AttentionBackwardParams& params)
      : b(params), p(b.forward), options(key_options(p)) {
    fill(scale, kPanelCols, product_scale(p.scale, p.softcap));
  }

  void load_block(const Sequence& s, int64_t head, Range rows, bool reused) {
    block = rows;
    stats = stats_of(p, s, head);
    queries = as_float32(query_rows<T>(p.q, p.q_strides, s, head), rows, p.dim, reused, q_buffer);
    gradients = as_float32(query_rows<T>(b.grad_out, b.grad_out_strides, s, head), rows,
                           p.value_dim, reused, grad_buffer);
  }

  // meet({begin, end}) for every run of `all` between the dead queries.
  template <class F>
  void for_each_live(const Sequence& s, int64_t head, Range all, F&& meet) const {
    const float* lse = p.lse + stats_of(p, s, head);
    for (int64_t row = all.begin; row < all.end; ++row) {
      const int64_t first = row;
      while (row < all.end && !dead(lse[row])) ++row;
      if (row > first) meet(Range{first, row});
    }
  }

  // Leaves P in scores and dS, not yet through the cap, in products, for the rows returned.
  Range meet_panel(const Columns& columns, const float* k, const float* v) {
    const Range rows = rows_met(options, columns.first(), columns.last(), block);
    if (rows.empty()) return rows;
    const int64_t skip = rows.begin - block.begin;
    meet(queries.from(skip), rows.size(), p.dim, k, scale, scores);
    apply_options(options, columns, rows, scores, derivative, bias);
    meet(gradients.from(skip), rows.size(), p.value_dim, v, nullptr, products);
    const float* lse = p.lse + stats + rows.begin;
    const float* delta = b.delta + stats + rows.begin;
    score_gradients(
        scores, products, rows.size(), [&](int64_t r, int) { return broadcast(in_base_2(lse[r])); },
        [&](int64_t r, int) { return broadcast(delta[r]); });
    return rows;
  }
};

template <class T>
void pack_keys(const AttentionParams& p, const Sequence& s, int64_t kv_head, int64_t j0, int count,
               float* k, float* v) {
  const auto k_head = key_rows<T>(p, p.k, p.k_strides, s, kv_head);
  const auto v_head = key_rows<T>(p, p.v, p.v_strides, s, kv_head);
  const T* rows[kPanelCols];
  for (int c = 0; c < count; ++c) rows[c] = k_head.row(j0 + c);
  pack_columns(rows, count, p.dim, k);
  for (int c = 0; c < count; ++c) rows[c] = v_head.row(j0 + c);
  pack_columns(rows, count, p.value_dim, v);
}

template <class T>
class KeyGradients {
 public:
  static constexpr int64_t kScorePanels = 2;

  KeyGradients(const AttentionBackwardParams& params, const Blocking& bl, const Sequence& s,
               int64_t head, int64_t j0)
      : b(params),
        p(params.forward),
        blocking(bl),
        sequence(s),
        kv_head(head),
        begin(j0),
        end(smaller(j0 + bl.columns, s.keys)),
        panels(static_cast<int>(ceil_div(end - j0, kPanelCols))),
        rows(params) {
    const int64_t scores_size = blocking.rows * kPanelCols;
    carve({{&k, blocking.columns * p.dim},
           {&v, blocking.columns * p.value_dim},
           {&grad_k, blocking.columns * p.dim},
           {&grad_v, blocking.columns * p.value_dim},
           {&rows.scores, scores_size},
           {&rows.products, scores_size},
           {&rows.derivative, p.softcap != 0 ? scores_size : 0},
           {&rows.bias, p.bias_type == BiasType::none ? 0 : scores_size},
           {&rows.q_buffer, blocking.rows * p.dim},
           {&rows.grad_buffer, blocking.rows * p.value_dim}});
  }

  void run() {
    for (int i = 0; i < panels; ++i) {
      pack_keys<T>(p, sequence, kv_head, first_column(i), count(i), k + i * kPanelCols * p.dim,
                   v + i * kPanelCols * p.value_dim);
      fill(grad_k + i * kPanelCols * p.dim, kPanelCols * p.dim, 0.0f);
      fill(grad_v + i * kPanelCols * p.value_dim, kPanelCols * p.value_dim, 0.0f);
    }
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) meet_head(head);
    for (int i = 0; i < panels; ++i) finish(i);
  }

 private:
  int64_t first_column(int i) const { return begin + static_cast<int64_t>(i) * kPanelCols; }
  int count(int i) const { return static_cast<int>(smaller(kPanelCols, end - first_column(i))); }

  void meet_head(int64_t head) {
    for (int i = 0; i < panels; ++i)
      describe_keys(p, sequence, head, first_column(i), count(i), columns[i]);
    const Range all = rows_met(rows.options, columns[0].first(), columns[panels - 1].last(),
                               {0, sequence.queries});
    for (int64_t row = blocking.first(all); row < all.end; row += blocking.rows)
      rows.for_each_live(sequence, head, blocking.block(row, all), [&](Range live) {
        rows.load_block(sequence, head, live, panels > 1);
        for (int i = 0; i < panels; ++i) accumulate(i);
      });
  }

  void accumulate(int i) {
    const Range met =
        rows.meet_panel(columns[i], k + i * kPanelCols * p.dim, v + i * kPanelCols * p.value_dim);
    if (met.empty()) return;
    if (p.softcap != 0) uncap(rows.derivative, met.size(), rows.products);
    const int64_t skip = met.begin - rows.block.begin;
    mix(rows.gradients.from(skip), met.size(), p.value_dim, rows.scores,
        grad_v + i * kPanelCols * p.value_dim, Into::accumulate);
    mix(rows.queries.from(skip), met.size(), p.dim, rows.products, grad_k + i * kPanelCols * p.dim,
        Into::accumulate);
  }

  void finish(int i) {
    float one[kPanelCols];
    const auto head = [&](void* data, const HeadStrides& s) {
      return head_of(static_cast<T*>(data), s, sequence.batch, kv_head) +
             sequence.first_key * s.token;
    };
    T *k_head = head(b.grad_k, b.grad_k_strides), *v_head = head(b.grad_v, b.grad_v_strides);
    T *k_rows[kPanelCols], *v_rows[kPanelCols];
    for (int c = 0; c < count(i); ++c) {
      k_rows[c] = k_head + (first_column(i) + c) * b.grad_k_strides.token;
      v_rows[c] = v_head + (first_column(i) + c) * b.grad_v_strides.token;
    }
    float natural[kPanelCols];
    fill(natural, kPanelCols, p.scale);
    unpack_columns(grad_k + i * kPanelCols * p.dim, count(i), p.dim, natural, k_rows);
    fill(one, kPanelCols, 1.0f);
    unpack_columns(grad_v + i * kPanelCols * p.value_dim, count(i), p.value_dim, one, v_rows);
  }

  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const Blocking& blocking;
  const Sequence sequence;
  const int64_t kv_head;
  const int64_t begin, end;  // keys
  const int panels;
  QueryRows<T> rows;
  float *k, *v, *grad_k, *grad_v;
  Columns columns[kMaxPanels];
};

// The gradient of one part of the bias: summed over every dimension in which the bias broadcasts,
// split into parts along those in which it does not.
template <class T>
class BiasGradient {
 public:
  BiasGradient(const AttentionBackwardParams& params, int64_t row_block)
      : b(params), p(params.forward), block(row_block), rows(params) {
    const int64_t scores_size = block * kPanelCols;
    float* doubles;
    carve({{&doubles, 2 * scores_size},
           {&k, kPanelCols * p.dim},
           {&v, kPanelCols * p.value_dim},
           {&rows.scores, scores_size},
           {&rows.products, scores_size},
           {&rows.derivative, p.softcap != 0 ? scores_size : 0},
           {&rows.bias, scores_size},
           {&rows.q_buffer, block * p.dim},
           {&rows.grad_buffer, block * p.value_dim}});
    sums = reinterpret_cast<double*>(doubles);
    for (int64_t i = 0; i < scores_size; ++i) sums[i] = 0;
  }

  static int64_t key_parts(const AttentionBackwardParams& b) {
    return b.bias_keys > 1 ? ceil_div(b.forward.keys, kPanelCols) : 1;
  }
  static int64_t query_parts(const AttentionBackwardParams& b, int64_t block) {
    return b.bias_queries > 1 ? ceil_div(b.forward.queries, block) : 1;
  }

  void run(int64_t part) {
    const int64_t key_part = part % key_parts(b);
    part /= key_parts(b);
    const int64_t query_part = part % query_parts(b, block);
    part /= query_parts(b, block);
    const int64_t bias_head = part % b.bias_heads, bias_batch = part / b.bias_heads;

    const auto share = [](bool split, int64_t index, int64_t size, int64_t whole) -> Range {
      if (!split) return {0, whole};
      return {index * size, smaller((index + 1) * size, whole)};
    };
    const Range batches = share(b.bias_batches > 1, bias_batch, 1, p.batch);
    const Range heads = share(b.bias_heads > 1, bias_head, 1, p.heads);
    queries = share(b.bias_queries > 1, query_part, block, p.queries);
    const Range keys = share(b.bias_keys > 1, key_part, kPanelCols, p.keys);
    for (int64_t batch = batches.begin; batch < batches.end; ++batch) {
      const Sequence s(p, batch);
      const int64_t end = smaller(keys.end, s.keys);
      for (int64_t head = heads.begin; head < heads.end; ++head)
        for (int64_t j = keys.begin; j < end; j += kPanelCols)
          meet_panel(s, head, j, static_cast<int>(smaller(kPanelCols, end - j)));
    }
    store_sums(b.grad_bias + (bias_batch * b.bias_heads + bias_head) * b.bias_queries * b.bias_keys,
               keys);
  }

 private:
  void meet_panel(const Sequence& s, int64_t head, int64_t j0, int count) {
    describe_keys(p, s, head, j0, count, columns);
    const Range all = rows_met(rows.options, columns.first(), columns.last(),
                               {queries.begin, smaller(queries.end, s.queries)});
    if (all.empty()) return;
    pack_keys<T>(p, s, head / (p.heads / p.kv_heads), j0, count, k, v);
    for (int64_t row = all.begin; row < all.end; row += block)
      rows.for_each_live(s, head, {row, smaller(row + block, all.end)}, [&](Range live) {
        rows.load_block(s, head, live, false);
        add(rows.meet_panel(columns, k, v));
      });
  }

  void add(Range met) {
    for (int64_t r = 0; r < met.size(); ++r) {
      double* to = sums + (b.bias_queries > 1 ? met.begin + r - queries.begin : 0) * kPanelCols;
      const float* from = rows.products + r * kPanelCols;
      for (int c = 0; c < columns.count; ++c) to[c] += static_cast<double>(from[c]);
    }
  }

  void store_sums(float* grad, Range keys) {
    const int64_t first = b.bias_queries > 1 ? queries.begin : 0;
    const int64_t count = b.bias_queries > 1 ? queries.size() : b.bias_queries;
    for (int64_t r = 0; r < count; ++r) {
      const double* from = sums + r * kPanelCols;
      float* to = grad + (first + r) * b.bias_keys + (b.bias_keys > 1 ? keys.begin : 0);
      if (b.bias_keys == 1) {
        double total = 0;
        for (int c = 0; c < kPanelCols; ++c) total += from[c];
        *to = static_cast<float>(total);
      } else {
        for (int64_t c = 0; c < keys.size(); ++c) to[c] = static_cast<float>(from[c]);
      }
    }
  }

  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const int64_t block;
  QueryRows<T> rows;
  float *k, *v;
  // [queries of this part, or 1][kPanelCols]; in double, since a broadcast bias sums over so many
  // scores that one float32 chain would lose digits.
  double* sums;
  Range queries;
  Columns columns;
};

// --- sinks ---------------------------------------------------------------------------------------

// A sink's weight exp(sink − lse) mixes no value, so its score's gradient is −weight · δ.
void sink_gradient(const AttentionBackwardParams& b, int64_t head) {
  const AttentionParams& p = b.forward;
  constexpr int64_t kRun = 16 * kLanes;  // queries summed in float32, 16 deep, before they join
  double total = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const Sequence s(p, batch);
    const int64_t stats = stats_of(p, s, head);
    for (int64_t first = 0; first < s.queries; first += kRun) {
      const int64_t end = smaller(first + kRun, s.queries);
      f32v part = broadcast(0.0f);
      for (int64_t i = first; i < end; i += kLanes) {
        const f32v lse = load_some(p.lse + stats + i, end - i);
        const i32v there = (lane_index() < static_cast<int32_t>(smaller(end - i, kLanes))) &
                           (lse != -__builtin_inff());
        const f32v weight = exp(p.sinks[head] - lse);
        part += select(there, weight * load_some(b.delta + stats + i, end - i), broadcast(0.0f));
      }
      total -= static_cast<double>(sum(part));
    }
  }
  b.grad_sinks[head] = static_cast<float>(total);
}

// Runs Unit over the columns of all sequences, the last ones first where `descending`.
template <class Unit, class F>
void run_units(const AttentionBackwardParams& b, F&& columns_of, bool descending,
               int64_t column_floats, int threads) {
  const AttentionParams& p = b.forward;
  int64_t most = 0, total = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const int64_t columns = columns_of(Sequence(p, batch));
    most = larger(most, columns);
    total += columns * p.kv_heads;
  }
  const Blocking blocking = choose_blocking(
      most, total,
      {.row = p.dim + p.value_dim, .column = column_floats, .score_panels = Unit::kScorePanels},
      threads);
  const Units units(p,
                    static_cast<int64_t*>(scratch(Scratch::state, (p.batch + 1) * sizeof(int64_t))),
                    [&](const Sequence& s) { return blocking.units(columns_of(s)); });
  parallel_tasks(units.size(), threads, [&](int64_t task) {
    units.at(task, [&](const Sequence& s, int64_t head, int64_t unit) {
      if (descending) unit = blocking.units(columns_of(s)) - 1 - unit;
      Unit(b, blocking, s, head, unit * blocking.columns).run();
    });
  });
}

template <class T>
void bias_gradient(const AttentionBackwardParams& b, int threads) {
  const AttentionParams& p = b.forward;
  const int64_t block =
      choose_blocking(p.keys, 1, {.row = p.dim + p.value_dim, .column = 1, .score_panels = 2}, 1)
          .rows;
  const int64_t parts = b.bias_batches * b.bias_heads * BiasGradient<T>::key_parts(b) *
                        BiasGradient<T>::query_parts(b, block);
  parallel_tasks(parts, threads, [&](int64_t part) { BiasGradient<T>(b, block).run(part); });
}

}  // namespace

void attention_backward(const AttentionBackwardParams& b) {
  const AttentionParams& p = b.forward;
  if (p.batch == 0 || p.kv_heads == 0) return;
  const int64_t group = p.heads / p.kv_heads, dims = p.dim + p.value_dim;
  double work = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const Sequence s(p, batch);
    work += static_cast<double>(s.queries * p.heads) * (s.keys * dims);
  }
  const int threads = useful_threads(work, p.threads);
  with_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    parallel_tasks(p.batch * p.heads, threads, [&](int64_t task) {
      deltas<T>(b, Sequence(p, task / p.heads), task % p.heads);
    });
    // With causality the last queries meet the most keys, and the first keys the most queries.
    run_units<QueryGradients<T>>(
        b, [&](const Sequence& s) { return s.queries * group; }, true, dims + p.dim, threads);
    run_units<KeyGradients<T>>(
        b, [](const Sequence& s) { return s.keys; }, false, 2 * dims, threads);
    if (b.grad_bias) bias_gradient<T>(b, threads);
  });
  if (b.grad_sinks) parallel_tasks(p.heads, threads, [&](int64_t head) { sink_gradient(b, head); });
}

}  // namespace lanewise::LANEWISE_TARGET
