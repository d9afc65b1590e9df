// How attention cuts its work into blocks, and the working memory of one.
#pragma once

#include "attention/scores.h"
#include "dispatch/cpu.h"
#include "dispatch/parallel.h"
#include "dispatch/scratch.h"
#include "gemm/pack.h"

namespace lanewise::LANEWISE_TARGET {

LANEWISE_INLINE void fill(float* p, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) p[i] = value;
}

inline constexpr int kMaxPanels = 16;  // 128 columns of the narrowest target, 256 of tiles

// A stack of up to so many queries may be decoded; more of them fill panels.
inline constexpr int kMostDecodeRows = kPanelCols * 3 / 4;

// A unit of work owns `columns` tokens, in panels, and meets `rows` of the others at a time. The
// result does not depend on the columns: blocks start at fixed rows wherever a unit's range does,
// so that every column's sums are the same sums for any cut, and so for any number of threads.
struct Blocking {
  int64_t columns;
  int64_t rows;

  int64_t units(int64_t tokens) const { return ceil_div(tokens, columns); }

  // The blocks of a range start at first(range), first(range) + rows, …
  int64_t first(Range range) const { return range.begin / rows * rows; }
  Range block(int64_t row, Range range) const {
    return {larger(row, range.begin), smaller(row + rows, range.end)};
  }
};

// What one unit keeps in the caches, in floats.
struct Footprint {
  int64_t row;           // of one row of a block
  int64_t column;        // of one owned column, operands and sums
  int64_t score_panels;  // panels as tall as a block of rows
  int64_t most_columns = 128;
};

// The panels of scores take half of L1 (the rest streams by), a block of rows half of L2, the owned
// columns a quarter. Most rows are 192, whole tiles of six; more would gain no speed and lengthen
// the chains of sums. Fewer columns where that would leave threads without work. `own`: the columns
// of the longest sequence; `total`: those of all.
inline Blocking choose_blocking(int64_t own, int64_t total, const Footprint& f, int threads) {
  constexpr int64_t kFloat = sizeof(float);
  constexpr int64_t kMinRows = 16, kMaxRows = 192, kUnitsPerThread = 4;
  const int64_t l1_rows = caches().l1 / 2 / (f.score_panels * kPanelCols * kFloat);
  const int64_t l2_rows = caches().l2 / 2 / (f.row * kFloat);
  const int64_t l2_panels = caches().l2 / 4 / (f.column * kPanelCols * kFloat);
  int64_t panels =
      smaller(ceil_div(own, kPanelCols), smaller(l2_panels, f.most_columns / kPanelCols));
  panels = larger(panels, 1);
  while (panels > 1 && total < kUnitsPerThread * threads * panels * kPanelCols)
    panels = ceil_div(panels, 2);
  return {panels * kPanelCols, larger(kMinRows, smaller(kMaxRows, smaller(l1_rows, l2_rows)))};
}

// A parallel region costs about as much as this many multiplications on one thread.
inline int useful_threads(double multiplications, int threads) {
  constexpr double kRegion = 1 << 17;
  return multiplications < kRegion ? 1 : threads;
}

struct Piece {
  float** at;
  int64_t floats;
};

// Cuts this thread's scratch buffer into pieces that start at cache lines.
template <int N>
inline void carve(const Piece (&pieces)[N]) {
  constexpr int64_t kLine = 16;
  const auto padded = [](const Piece& p) { return ceil_div(p.floats, kLine) * kLine; };
  int64_t total = 0;
  for (const Piece& p : pieces) total += padded(p);
  float* next = static_cast<float*>(scratch(Scratch::panels, total * sizeof(float)));
  for (const Piece& p : pieces) {
    *p.at = next;
    next += padded(p);
  }
}

// For a column that attends nothing: its sums may be NaN, 0 times what the others of its panel met,
// or not begun.
inline void clear_column(float* panel, int column, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) panel[r * kPanelCols + column] = 0.0f;
}

// One sequence of the batch.
struct Sequence {
  int64_t batch, queries, keys;
  int64_t first_query, first_key;  // in packed arrays, else 0

  Sequence(const AttentionParams& p, int64_t b)
      : batch(b),
        queries(p.queries),
        keys(p.key_counts ? p.key_counts[b] : p.keys),
        first_query(0),
        first_key(0) {
    if (p.query_starts) {
      first_query = p.query_starts[b];
      queries = p.query_starts[b + 1] - first_query;
    }
    if (p.key_starts) {
      first_key = p.key_starts[b];
      keys = p.key_starts[b + 1] - first_key;
    }
  }
};

// Whether a sequence's queries are so few beside its keys that keys and values had better be read
// once, where they lie (decode.h), than met by panels of queries, mostly empty ones.
LANEWISE_INLINE bool decodes(const AttentionParams& p, const Sequence& s) {
  constexpr int64_t kManyKeys = 4;  // for each query
  return s.queries * (p.heads / p.kv_heads) <= kMostDecodeRows && s.keys >= kManyKeys * s.queries;
}

template <class T>
LANEWISE_INLINE T* head_of(T* data, const HeadStrides& s, int64_t batch, int64_t head) {
  return data + batch * s.batch + head * s.head;
}

// Where the tokens of one head lie: `stride` apart, in one piece or in the blocks of a table.
template <class T>
struct TokenRows {
  const T* data;
  int64_t stride;
  const int32_t* blocks = nullptr;
  int64_t block_size = 0, block_stride = 0;

  const T* row(int64_t token) const {
    if (!blocks) return data + token * stride;
    return data + blocks[token / block_size] * block_stride + token % block_size * stride;
  }
  // The end of the piece that `token` lies in, at most `end`.
  int64_t piece_end(int64_t token, int64_t end) const {
    return blocks ? smaller(end, (token / block_size + 1) * block_size) : end;
  }
};

template <class T>
inline TokenRows<T> key_rows(const AttentionParams& p, const void* data, const HeadStrides& s,
                             const Sequence& sequence, int64_t kv_head) {
  const T* head = static_cast<const T*>(data) + kv_head * s.head;
  if (p.block_table)
    return {head, s.token, p.block_table + sequence.batch * p.table_stride, p.block_size, s.batch};
  return {head + sequence.batch * s.batch + sequence.first_key * s.token, s.token};
}

// A head's first query in an array that is laid out as q.
template <class T>
LANEWISE_INLINE T* queries_of(T* data, const HeadStrides& s, const Sequence& sequence,
                              int64_t head) {
  return head_of(data, s, sequence.batch, head) + sequence.first_query * s.token;
}

template <class T>
inline TokenRows<T> query_rows(const void* data, const HeadStrides& s, const Sequence& sequence,
                               int64_t head) {
  return {queries_of(static_cast<const T*>(data), s, sequence, head), s.token};
}

// Tokens begin … end of a head as float32. In place where they lie side by side already or where a
// single panel reads them, since a copy would cost more than it saves.
template <class T>
inline Tokens as_float32(const TokenRows<T>& from, Range tokens, int64_t dim, bool reused,
                         float* buffer) {
  if constexpr (sizeof(T) == sizeof(float))
    if (from.piece_end(tokens.begin, tokens.end) == tokens.end && (from.stride == dim || !reused))
      return {from.row(tokens.begin), from.stride};
  float* to = buffer;
  for (int64_t t = tokens.begin; t < tokens.end;) {
    const T* row = from.row(t);
    for (const int64_t end = from.piece_end(t, tokens.end); t < end;
         ++t, row += from.stride, to += dim)
      convert_row(row, to, dim);
  }
  return {buffer, dim};
}

// Offset of the statistics of a head's first query.
LANEWISE_INLINE int64_t stats_of(const AttentionParams& p, const Sequence& s, int64_t head) {
  return s.batch * p.lse_batch + head * p.lse_head + s.first_query;
}

LANEWISE_INLINE float slope_of(const AttentionParams& p, int64_t batch, int64_t head) {
  return p.slopes ? p.slopes[batch * p.slopes_batch + head * p.slopes_head] : 0.0f;
}

// The units of work of all sequences, numbered through.
class Units {
 public:
  // count(sequence): its units. `first` has room for batch + 1 numbers.
  template <class F>
  Units(const AttentionParams& p, int64_t* first, F&& count) : p_(p), first_(first) {
    first_[0] = 0;
    for (int64_t b = 0; b < p.batch; ++b) first_[b + 1] = first_[b] + count(Sequence(p, b));
  }

  int64_t size() const { return first_[p_.batch]; }

  // run(sequence, i): unit i of a sequence.
  template <class F>
  LANEWISE_INLINE void at(int64_t unit, F&& run) const {
    int64_t batch = 0;
    for (int64_t end = p_.batch; end - batch > 1;) {
      const int64_t middle = batch + (end - batch) / 2;
      (first_[middle] <= unit ? batch : end) = middle;
    }
    run(Sequence(p_, batch), unit - first_[batch]);
  }

 private:
  const AttentionParams& p_;
  int64_t* first_;
};

// Panels of queries: all heads that share a key head side by side, so that they meet each key once.
// Column n of the stack is head n % group of query n / group, which keeps positions in order.
struct QueryStack {
  const AttentionParams& p;
  Sequence sequence;
  int64_t kv_head, group;

  QueryStack(const AttentionParams& params, const Sequence& s, int64_t h)
      : p(params), sequence(s), kv_head(h), group(params.heads / params.kv_heads) {}

  int64_t size() const { return sequence.queries * group; }
  int64_t head(int64_t n) const { return kv_head * group + n % group; }
  int64_t query(int64_t n) const { return n / group; }
  int64_t position(int64_t n) const { return query(n) + sequence.keys - sequence.queries; }
  int64_t stats(int64_t n) const { return stats_of(p, sequence, head(n)) + query(n); }

  // to[c]: the row of column n0 + c.
  template <class T>
  void rows(T* data, const HeadStrides& s, int64_t n0, int count, T** to) const {
    for (int c = 0; c < count; ++c)
      to[c] = queries_of(data, s, sequence, head(n0 + c)) + query(n0 + c) * s.token;
  }

  // sink[c]: that of column n0 + c, −inf where there is none.
  void sinks(int64_t n0, int count, float* sink) const {
    fill(sink, kPanelCols, -__builtin_inff());
    for (int c = 0; p.sinks && c < count; ++c) sink[c] = p.sinks[head(n0 + c)];
  }

  void describe(int64_t n0, int count, Columns& columns) const {
    columns.fill(count, [&](int c) {
      const int64_t n = n0 + c, batch = sequence.batch;
      columns.position[c] = position(n);
      columns.slope[c] = slope_of(p, batch, head(n));
      columns.bias[c] = batch * p.bias_batch + head(n) * p.bias_head + query(n) * p.bias_query;
    });
  }
};

// The options as panels of queries meet them; rows are keys.
inline ScoreOptions query_options(const AttentionParams& p) {
  return {.before = p.window_left,
          .after = p.window_right,
          .softcap = p.softcap,
          .alibi = p.slopes != nullptr,
          .bias_type = p.bias_type,
          .bias = p.bias,
          .bias_row = p.bias_key};
}

}  // namespace lanewise::LANEWISE_TARGET
