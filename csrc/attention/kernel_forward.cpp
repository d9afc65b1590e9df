#include "attention/blocks.h"
#include "attention/kernel.h"
#include "attention/softmax.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

struct Buffers {
  float *q, *out, *scores, *bias, *k, *v;

  Buffers(const AttentionParams& p, const Blocking& b) {
    carve({{&q, b.columns * p.dim},
           {&out, b.columns * p.value_dim},
           {&scores, b.rows * kPanelCols},
           {&bias, p.bias_type == BiasType::none ? 0 : b.rows * kPanelCols},
           {&k, b.rows * p.dim},
           {&v, b.rows * p.value_dim}});
  }
};

// Columns of a query stack from n0 on, from their queries to their outputs.
template <class T>
class Unit {
 public:
  Unit(const Blocking& b, const QueryStack& s, int64_t n0)
      : p(s.p),
        options(query_options(p)),
        blocking(b),
        stack(s),
        buffers(p, b),
        begin(n0),
        end(smaller(n0 + b.columns, s.size())),
        panels(static_cast<int>(ceil_div(end - n0, kPanelCols))) {
    fill(scale, kPanelCols, p.scale);
  }

  void run() {
    for (int i = 0; i < panels; ++i) start(i);
    const Range all =
        rows_met(options, stack.position(begin), stack.position(end - 1), {0, stack.sequence.keys});
    const auto k = key_rows<T>(p, p.k, p.k_strides, stack.sequence, stack.kv_head);
    const auto v = key_rows<T>(p, p.v, p.v_strides, stack.sequence, stack.kv_head);
    for (int64_t row = blocking.first(all); row < all.end; row += blocking.rows) {
      const Range block = blocking.block(row, all);
      const bool reused = panels > 1;
      const Tokens keys = as_float32(k, block, p.dim, reused, buffers.k);
      const Tokens values = as_float32(v, block, p.value_dim, reused, buffers.v);
      for (int i = 0; i < panels; ++i) attend(i, block, keys, values);
    }
    for (int i = 0; i < panels; ++i) finish(i);
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
    pack_columns([&](int c) { return stack.row(static_cast<const T*>(p.q), p.q_strides, n0 + c); },
                 columns[i].count, p.dim, q_panel(i));
  }

  void attend(int i, Range block, Tokens keys, Tokens values) {
    const Range rows = rows_met(options, columns[i].first(), columns[i].last(), block);
    if (rows.empty()) return;
    const int64_t skip = rows.begin - block.begin;
    meet(keys.from(skip), rows.size(), p.dim, q_panel(i), scale, buffers.scores);
    apply_options(options, columns[i], rows, buffers.scores, nullptr, buffers.bias);
    softmax[i].update(buffers.scores, rows.size());
    mix(values.from(skip), rows.size(), p.value_dim, buffers.scores, out_panel(i),
        started[i] ? Into::rescale : Into::zero, softmax[i].factor);
    started[i] = true;
  }

  void finish(int i) {
    const int64_t n0 = first_column(i);
    float sink[kPanelCols], lse[kPanelCols];
    for (int c = 0; c < kPanelCols; ++c)
      sink[c] = p.sinks && c < columns[i].count ? p.sinks[stack.head(n0 + c)] : -__builtin_inff();
    softmax[i].finish(sink, lse);
    for (int c = 0; c < columns[i].count; ++c) {
      p.lse[stack.stats(n0 + c)] = lse[c];
      if (lse[c] == -__builtin_inff()) clear_column(out_panel(i), c, p.value_dim);
    }
    unpack_columns(out_panel(i), columns[i].count, p.value_dim, softmax[i].factor,
                   [&](int c) { return stack.row(static_cast<T*>(p.out), p.out_strides, n0 + c); });
  }

  const AttentionParams& p;
  const ScoreOptions options;
  const Blocking& blocking;
  const QueryStack stack;
  const Buffers buffers;
  const int64_t begin, end;  // columns of the stack
  const int panels;
  float scale[kPanelCols];
  Columns columns[kMaxPanels];
  Softmax softmax[kMaxPanels];
  bool started[kMaxPanels];
};

}  // namespace

void attention(const AttentionParams& p) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const int64_t group = p.heads / p.kv_heads;
  int64_t columns = 0;
  double work = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Sequence s(p, b);
    columns += s.queries * p.heads;
    work += static_cast<double>(s.queries * p.heads) * (s.keys * (p.dim + p.value_dim));
  }
  const int threads = useful_threads(work, p.threads);
  const Blocking blocking = choose_blocking(
      p.queries * group, columns,
      {.row = p.dim + p.value_dim, .column = p.dim + p.value_dim, .score_panels = 1}, threads);
  const Units units(p, [&](const Sequence& s) { return blocking.units(s.queries * group); });
  with_dtype(p.dtype, [&](auto element) {
    parallel_tasks(units.size(), threads, [&](int64_t task) {
      units.at(task, [&](const Sequence& s, int64_t head, int64_t unit) {
        const QueryStack stack(p, s, head);
        // A causal unit's work grows with its queries: the last ones first.
        const int64_t last = blocking.units(stack.size()) - 1;
        Unit<decltype(element)>(blocking, stack, (last - unit) * blocking.columns).run();
      });
    });
  });
}

}  // namespace lanewise::LANEWISE_TARGET
