// Gradients without a score matrix in memory and without atomics on sums. With P = e^(S − lse) and
// δ = rowsum(dO ∘ O) − dlse (Dao et al., "FlashAttention", 2022, appendix B):
//   dS = P ∘ (dO·Vᵀ − δ),  dQ = scale · dS·K,  dK = scale · dSᵀ·Q,  dV = Pᵀ·dO,  dbias = dS.
//
// One pass of five products. A unit of work owns some keys: it meets all their queries, block by
// block, keeps dK and dV in the caches, and adds its share of dQ to sums in memory. For these the
// units of a head take turns at every block of queries, in the order of their keys: the same sums
// for any number of threads, which follow each other through a head one block apart.
#include "attention/blocks.h"
#include "attention/kernel.h"
#include "attention/prefill.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Whether a query attended nothing: it has no gradient and gives none, whatever NaN it would meet.
LANEWISE_INLINE bool dead(float lse) { return lse == -__builtin_inff(); }

// scores become P, products (dO·Vᵀ) become dS times `factor`, which comes last: before it, what
// cancels in dO·Vᵀ − δ must not be rounded.
LANEWISE_INLINE void score_gradients(float* scores, float* products, int64_t rows, const float* lse,
                                     const float* delta, float factor) {
  for (int64_t r = 0; r < rows; ++r) {
    const f32v log = broadcast(lse[r]), d = broadcast(delta[r]);
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = r * kPanelCols + v * kLanes;
      const f32v weight = weight_of(load(scores + at), log);
      store(scores + at, weight);
      store(products + at, weight * (load(products + at) - d) * factor);
    }
  }
}

// Through the cap: dS of the capped score times its derivative.
LANEWISE_INLINE void uncap(const float* derivative, int64_t rows, float* gradients) {
  for_each_vector(gradients, rows, [&](f32v g, int64_t r, int v) {
    return g * load(derivative + r * kPanelCols + v * kLanes);
  });
}

LANEWISE_INLINE float* query_sums(const AttentionBackwardParams& b, const Sequence& s,
                                  int64_t head) {
  return queries_of(b.grad_q_sums, b.grad_q_sums_strides, s, head);
}

// --- lse and δ -----------------------------------------------------------------------------------

// What decodes has the lse of scores whose sums ran in another order than those of panels, which
// its weights are made from here. So it is made once more, on panels, for one key head.
template <class T>
void remake_norms(const AttentionBackwardParams& b, const Sequence& s, int64_t kv_head) {
  AttentionParams p = b.forward;
  if (s.queries == 0 || !decodes(p, s)) return;
  p.value_dim = 0;  // no outputs
  p.lse = b.norms;
  const QueryStack stack(p, s, kv_head);
  const Blocking blocking = choose_blocking(stack.size(), stack.size(),
                                            {.row = p.dim, .column = p.dim, .score_panels = 1}, 1);
  Prefill<T, VectorProducts<T>>(blocking, stack, 0, {0, s.keys}).run(nullptr);
}

// δ is summed as dO·Vᵀ is, so that nothing is left of their difference where it ought to be 0, as
// for a query's only key. Also clears the sums of dQ.
template <class T>
void prepare(const AttentionBackwardParams& b, const Sequence& s, int64_t head) {
  const AttentionParams& p = b.forward;
  const TokenRows<T> outs = query_rows<T>(p.out, p.out_strides, s, head);
  const TokenRows<T> grads = query_rows<T>(b.grad_out, b.grad_out_strides, s, head);
  const int64_t stats = stats_of(p, s, head);
  const bool remade = decodes(p, s);
  float* sums = query_sums(b, s, head);
  for (int64_t first = 0; first < s.queries; first += kLanes) {
    const int count = static_cast<int>(smaller(kLanes, s.queries - first));
    const T *out[kLanes], *grad[kLanes];
    for (int i = 0; i < count; ++i) {
      out[i] = outs.row(first + i);
      grad[i] = grads.row(first + i);
    }
    const f32v products = meet_own(out, grad, count, p.value_dim);
    for (int i = 0; i < count; ++i) {
      const int64_t at = stats + first + i;
      if (!remade) b.norms[at] = p.lse[at];
      const float grad_lse = b.grad_lse ? b.grad_lse[at] : 0.0f;
      b.delta[at] = dead(b.norms[at]) ? 0.0f : products[i] - grad_lse;
      fill(sums + (first + i) * b.grad_q_sums_strides.token, p.dim, 0.0f);
    }
  }
}

template <class T>
void round_sums(const AttentionBackwardParams& b, const Sequence& s, int64_t head) {
  const float* sums = query_sums(b, s, head);
  T* to = queries_of(static_cast<T*>(b.grad_q), b.grad_q_strides, s, head);
  for (int64_t query = 0; query < s.queries; ++query)
    convert_row(sums + query * b.grad_q_sums_strides.token, to + query * b.grad_q_strides.token,
                b.forward.dim);
}

// --- panels: columns are keys, rows queries ------------------------------------------------------

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
    columns.slope[c] = slope_of(p, batch, head);
    columns.bias[c] = batch * p.bias_batch + head * p.bias_head + j * p.bias_key;
  });
}

// One query head's rows, as the panels of keys meet them.
template <class T>
struct QueryRows {
  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const ScoreOptions options;
  const float factor;  // of dS
  float scale[kPanelCols];
  float *q_buffer, *grad_buffer, *scores, *products, *derivative, *bias;
  int64_t stats;
  Range block;
  Tokens queries, gradients;

  QueryRows(const AttentionBackwardParams& params, float f)
      : b(params), p(b.forward), options(key_options(p)), factor(f) {
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
    const float* lse = b.norms + stats_of(p, s, head);
    for (int64_t row = all.begin; row < all.end; ++row) {
      const int64_t first = row;
      while (row < all.end && !dead(lse[row])) ++row;
      if (row > first) meet(Range{first, row});
    }
  }

  Range met(const Columns& columns) const {
    return rows_met(options, columns.first(), columns.last(), block);
  }

  // Leaves P in scores and dS, not yet through the cap, in products, for the rows met.
  void meet_panel(const Columns& columns, Range rows, const float* k, const float* v) {
    const int64_t skip = rows.begin - block.begin;
    meet(queries.from(skip), rows.size(), p.dim, k, scale, scores);
    apply_options(options, columns, rows, scores, derivative, bias);
    meet(gradients.from(skip), rows.size(), p.value_dim, v, nullptr, products);
    score_gradients(scores, products, rows.size(), b.norms + stats + rows.begin,
                    b.delta + stats + rows.begin, factor);
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

// --- dQ, dK, dV ----------------------------------------------------------------------------------

// Sums of dQ are added to in turns.
class Turns {
 public:
  // `taken` has room for size(p, rows) numbers.
  Turns(const AttentionParams& p, int64_t rows, int64_t* taken)
      : heads_(p.heads), blocks_(ceil_div(p.queries, rows)), taken_(taken) {
    for (int64_t i = 0; i < p.batch * heads_ * blocks_; ++i) taken_[i] = 0;
  }
  static int64_t size(const AttentionParams& p, int64_t rows) {
    return p.batch * p.heads * ceil_div(p.queries, rows);
  }
  int64_t* at(int64_t batch, int64_t head, int64_t block) const {
    return taken_ + (batch * heads_ + head) * blocks_ + block;
  }

 private:
  int64_t heads_, blocks_;
  int64_t* taken_;
};

// out[r][d] += Σ_n weights[n][r] · keys[n][d] for so many rows and one panel's width of d, of which
// `dims` are there; the weights lie in panels.
template <int ROWS>
inline void add_keys(const float* weights, int64_t panel_size, int64_t count, const float* keys,
                     float* out, int64_t stride, int64_t dims) {
  f32v sum[ROWS][kPanelVectors];
  clear(sum);
  for (int64_t n = 0; n < count; n += kPanelCols, weights += panel_size) {
    const int columns = static_cast<int>(smaller(kPanelCols, count - n));
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c, keys += kPanelCols) {
      f32v key[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) key[v] = load(keys + v * kLanes);
      for (int r = 0; r < ROWS; ++r) {
        const f32v weight = broadcast(weights[r * kPanelCols + c]);
        for (int v = 0; v < kPanelVectors; ++v) sum[r][v] += weight * key[v];
      }
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < kPanelVectors; ++v)
      if (const int64_t rest = dims - v * kLanes; rest > 0) {
        float* to = out + r * stride + v * kLanes;
        store_some(to, load_some(to, rest) + sum[r][v], rest);
      }
}

template <class T>
class KeyGradients {
 public:
  KeyGradients(const AttentionBackwardParams& params, const Blocking& bl, const Turns& t,
               const Sequence& s, int64_t head, int64_t unit_of_keys)
      : b(params),
        p(params.forward),
        blocking(bl),
        turns(t),
        sequence(s),
        kv_head(head),
        unit(unit_of_keys),
        begin(unit * bl.columns),
        end(smaller(begin + bl.columns, s.keys)),
        panels(static_cast<int>(ceil_div(end - begin, kPanelCols))),
        rows(params, static_cast<float>(p.scale)),
        key_window(query_options(p)) {
    const int64_t scores_size = blocking.rows * kPanelCols;
    const int64_t wide_dim = ceil_div(p.dim, kPanelCols) * kPanelCols;
    carve({{&k, blocking.columns * p.dim},
           {&v, blocking.columns * p.value_dim},
           {&grad_k, blocking.columns * p.dim},
           {&grad_v, blocking.columns * p.value_dim},
           {&keys, blocking.columns * wide_dim},
           {&rows.scores, scores_size},
           {&products, panels * scores_size},
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
    arrange_keys();
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) meet_head(head);
    for (int i = 0; i < panels; ++i) finish(i);
  }

 private:
  int64_t first_column(int i) const { return begin + static_cast<int64_t>(i) * kPanelCols; }
  int count(int i) const { return static_cast<int>(smaller(kPanelCols, end - first_column(i))); }

  // keys[d / kPanelCols][n][d % kPanelCols]: the right operand of dQ.
  void arrange_keys() {
    const auto from = key_rows<T>(p, p.k, p.k_strides, sequence, kv_head);
    for (int64_t n = begin; n < end; ++n) {
      const T* row = from.row(n);
      for (int64_t d = 0; d < p.dim; d += kPanelCols)
        for (int v = 0; v < kPanelCols; v += kLanes)
          store(keys + d * (end - begin) + (n - begin) * kPanelCols + v,
                d + v < p.dim ? load_some(row + d + v, p.dim - d - v) : broadcast(0.0f));
    }
  }

  // The queries of a block that another unit of keys meets.
  Range met_by(int64_t other, Range block) const {
    const int64_t shift = sequence.keys - sequence.queries, first = other * blocking.columns;
    const int64_t last = smaller(first + blocking.columns, sequence.keys) - 1;
    return rows_met(rows.options, first - shift, last - shift, block);
  }

  void meet_head(int64_t head) {
    for (int i = 0; i < panels; ++i)
      describe_keys(p, sequence, head, first_column(i), count(i), columns[i]);
    for (int64_t row = 0; row < sequence.queries; row += blocking.rows) {
      const Range block = {row, smaller(row + blocking.rows, sequence.queries)};
      const Range all = met_by(unit, block);
      if (all.empty()) continue;
      int64_t* turn = turns.at(sequence.batch, head, row / blocking.rows);
      const auto wait = [&] {
        if (unit > 0 && !met_by(unit - 1, block).empty()) wait_until(turn, unit);
      };
      rows.for_each_live(sequence, head, all, [&](Range live) {
        rows.load_block(sequence, head, live, panels > 1);
        for (int i = 0; i < panels; ++i) accumulate(i);
        wait();
        add_to_queries(head, live);
      });
      wait();
      __atomic_store_n(turn, unit + 1, __ATOMIC_RELEASE);
    }
  }

  void accumulate(int i) {
    const int64_t panel_size = blocking.rows * kPanelCols;
    float* panel = products + i * panel_size;
    const Range met = rows.met(columns[i]);
    const int64_t begin_row = met.empty() ? rows.block.size() : met.begin - rows.block.begin;
    const int64_t end_row = met.empty() ? rows.block.size() : met.end - rows.block.begin;
    fill(panel, begin_row * kPanelCols, 0.0f);
    fill(panel + end_row * kPanelCols, (rows.block.size() - end_row) * kPanelCols, 0.0f);
    if (met.empty()) return;
    rows.products = panel + begin_row * kPanelCols;
    rows.meet_panel(columns[i], met, k + i * kPanelCols * p.dim, v + i * kPanelCols * p.value_dim);
    if (p.softcap != 0) uncap(rows.derivative, met.size(), rows.products);
    mix(rows.gradients.from(begin_row), met.size(), p.value_dim, rows.scores,
        grad_v + i * kPanelCols * p.value_dim, Into::accumulate);
    mix(rows.queries.from(begin_row), met.size(), p.dim, rows.products,
        grad_k + i * kPanelCols * p.dim, Into::accumulate);
  }

  void add_to_queries(int64_t head, Range live) {
    const HeadStrides& s = b.grad_q_sums_strides;
    float* to = query_sums(b, sequence, head) + live.begin * s.token;
    const int64_t tiles = ceil_div(live.size(), kPanelRows),
                  panel_size = blocking.rows * kPanelCols;
    const int64_t shift = sequence.keys - sequence.queries, all = end - begin;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t r = live.size() * tile / tiles, r_end = live.size() * (tile + 1) / tiles;
      // Whole panels of the keys that some query of the tile meets.
      const int64_t first = live.begin + shift + r, last = live.begin + shift + r_end - 1;
      const Range met = rows_met(key_window, first, last, {begin, end});
      if (met.empty()) continue;
      const int64_t n = (met.begin - begin) / kPanelCols * kPanelCols, count = met.end - begin - n;
      const float* weights = products + n / kPanelCols * panel_size + r * kPanelCols;
      with_rows<kPanelRows>(static_cast<int>(r_end - r), [&]<int ROWS>(Rows<ROWS>) {
        for (int64_t d = 0; d < p.dim; d += kPanelCols)
          add_keys<ROWS>(weights, panel_size, count, keys + d * all + n * kPanelCols,
                         to + r * s.token + d, s.token, p.dim - d);
      });
    }
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
    fill(one, kPanelCols, 1.0f);
    unpack_columns(grad_k + i * kPanelCols * p.dim, count(i), p.dim, one, k_rows);
    unpack_columns(grad_v + i * kPanelCols * p.value_dim, count(i), p.value_dim, one, v_rows);
  }

  const AttentionBackwardParams& b;
  const AttentionParams& p;
  const Blocking& blocking;
  const Turns& turns;
  const Sequence sequence;
  const int64_t kv_head, unit;
  const int64_t begin, end;  // keys
  const int panels;
  QueryRows<T> rows;
  const ScoreOptions key_window;  // which keys a query meets
  float *k, *v, *grad_k, *grad_v, *keys;
  float* products;  // a panel of dS for every panel of keys
  Columns columns[kMaxPanels];
};

// The gradient of one part of the bias: summed over every dimension in which the bias broadcasts,
// split into parts along those in which it does not.
template <class T>
class BiasGradient {
 public:
  BiasGradient(const AttentionBackwardParams& params, int64_t row_block)
      : b(params), p(params.forward), block(row_block), rows(params, 1.0f) {
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
        const Range met = rows.met(columns);
        rows.meet_panel(columns, met, k, v);
        add(met);
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
        const f32v lse = load_some(b.norms + stats + i, end - i);
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

template <class T>
void key_gradients(const AttentionBackwardParams& b, int threads) {
  const AttentionParams& p = b.forward;
  const int64_t dims = p.dim + p.value_dim;
  // As for one thread, whatever their number: dQ is summed unit by unit.
  const Blocking blocking =
      choose_blocking(p.keys, p.keys * p.batch * p.kv_heads,
                      {.row = dims, .column = 2 * dims + p.dim, .score_panels = 2}, 1);
  auto* state = static_cast<int64_t*>(
      scratch(Scratch::state, (p.batch + 1 + Turns::size(p, blocking.rows)) * sizeof(int64_t)));
  const Units units(p, state,
                    [&](const Sequence& s) { return blocking.units(s.keys) * p.kv_heads; });
  const Turns turns(p, blocking.rows, state + p.batch + 1);
  // The first units of all heads come first: who waits for a turn waits for a unit that was begun
  // before, and long before where there are many heads.
  parallel_tasks(units.size(), threads, [&](int64_t task) {
    units.at(task, [&](const Sequence& s, int64_t i) {
      KeyGradients<T>(b, blocking, turns, s, i % p.kv_heads, i / p.kv_heads).run();
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
  const int64_t dims = p.dim + p.value_dim;
  double work = 0;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    const Sequence s(p, batch);
    work += static_cast<double>(s.queries * p.heads) * (s.keys * dims);
  }
  const int threads = useful_threads(work, p.threads);
  with_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const auto for_each_head = [&](auto&& f) {
      parallel_tasks(p.batch * p.heads, threads,
                     [&](int64_t task) { f(b, Sequence(p, task / p.heads), task % p.heads); });
    };
    parallel_tasks(p.batch * p.kv_heads, threads, [&](int64_t task) {
      remake_norms<T>(b, Sequence(p, task / p.kv_heads), task % p.kv_heads);
    });
    for_each_head(prepare<T>);
    key_gradients<T>(b, threads);
    if constexpr (sizeof(T) < sizeof(float)) for_each_head(round_sums<T>);
    if (b.grad_bias) bias_gradient<T>(b, threads);
  });
  if (b.grad_sinks) parallel_tasks(p.heads, threads, [&](int64_t head) { sink_gradient(b, head); });
}

}  // namespace lanewise::LANEWISE_TARGET
