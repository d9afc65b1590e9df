// Few queries over many keys, as when a model writes token by token: bound by how fast keys and
// values come from memory, so these are read once, where they lie, by all query heads that share
// them. Nothing is packed.
//
// A chunk of keys at a time: their dot products with all rows (queries of one key head), then the
// softmax with keys in the lanes, then the values scaled and summed. While one of K and V is
// multiplied, the other is fetched.
#pragma once

#include <type_traits>

#include "attention/blocks.h"
#include "attention/partial.h"
#include "attention/softmax.h"
#include "gemm/words.h"

namespace lanewise::LANEWISE_TARGET {

// Rows that one pass takes together, and vectors of V or lines of K beside them. An FMA takes 4 or
// 5 cycles and two start in each: with fewer than 8 or 10 chains of sums the units would wait.
// Budget of 16 registers: 4 × 3 accumulators, 3 vectors of V and one weight. Lines of K are fewer,
// since g++ spills a sum where none of the registers is left over, which costs more than idle
// units.
inline constexpr int kPassRows = 6;
constexpr int vectors_of(int rows) {
  constexpr int k16[] = {8, 6, 4, 3, 2, 2}, k32[] = {8, 8, 8, 6, 4, 4};
  return kRegisters == 32 ? k32[rows - 1] : k16[rows - 1];
}
constexpr int dot_lines_of(int rows) {
  constexpr int k16[] = {8, 4, 3, 2, 2, 2}, k32[] = {8, 8, 6, 4, 4, 3};
  return kRegisters == 32 ? k32[rows - 1] : k16[rows - 1];
}
// Keys whose dot products are folded together: whole vectors, and a multiple of any lines.
inline constexpr int kFold = kLanes == 16 ? 48 : 24;
// A chunk has whole multiples of so many keys: with 16 lanes whole folds, as fewer gained nothing.
inline constexpr int kGrain = kLanes == 16 ? kFold : 8;

// Elements are read two vectors at a time. A pair of bfloat16 widens without crossing lanes: even
// elements come first then, odd ones second, in rows of q and sums of v alike.
inline constexpr int kTwin = 2 * kLanes;
template <int N>
using Half = std::integral_constant<int, N>;

// As widen_odd, but for the mask, which would take one of 16 registers: the twelfth accumulator's.
LANEWISE_INLINE f32v widen_odd_from_memory(pairs v) {
#if defined(__AVX2__) && LANEWISE_LANES == 8
  alignas(32) static constexpr uint32_t kMask[kLanes] = LANEWISE_REPEAT(0xffff0000u);
  __asm__("vpand %1, %0, %0" : "+x"(v) : "m"(kMask));
  return as_float(v);
#else
  return widen_odd(v);
#endif
}

template <int HALF>
LANEWISE_INLINE f32v load_half(const auto* p) {
  return load(p + HALF * kLanes);
}
template <int HALF>
LANEWISE_INLINE f32v load_half(const bf16* p) {
  const pairs both = load(reinterpret_cast<const bf16x2*>(p));
  return HALF ? widen_odd_from_memory(both) : widen_even(both);
}
// Vector v counted from half HALF of the twin at p.
template <int HALF>
LANEWISE_INLINE f32v load_vector(const auto* p, int v) {
  return (HALF + v) % 2 ? load_half<1>(p + (HALF + v) / 2 * kTwin)
                        : load_half<0>(p + (HALF + v) / 2 * kTwin);
}

// The twin that begins with `count` < kTwin elements, filled up with zeros.
template <class T>
LANEWISE_INLINE void copy_rest(const T* p, int64_t count, T (&twin)[kTwin]) {
  for (int i = 0; i < kTwin; ++i) twin[i] = i < count ? p[i] : T{};
}

template <class T>
inline void arrange(const T* from, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; d += kTwin) {
    T rest[kTwin];
    const T* twin = from + d;
    if (d + kTwin > dim) {
      copy_rest(from + d, dim - d, rest);
      twin = rest;
    }
    store(to + d, load_half<0>(twin));
    store(to + d + kLanes, load_half<1>(twin));
  }
}

// The places of `count` floats in natural order.
template <class T>
inline void restore_order(float* data, int64_t count) {
  if constexpr (std::is_same_v<T, bf16>)
    for (int64_t d = 0; d < count; d += kTwin) {
      float twin[kTwin];
      for (int i = 0; i < kTwin; ++i) twin[i] = data[d + i % 2 * kLanes + i / 2];
      __builtin_memcpy(data + d, twin, sizeof twin);
    }
}

// Lines of memory that are wanted soon, a few with every step of work.
template <class T>
class Fetcher {
 public:
  Fetcher(const T* const* rows, int count, int64_t dim)
      : rows_(rows), end_(rows + count), bytes_(dim * static_cast<int64_t>(sizeof(T))) {}

  // The lines of the next row.
  LANEWISE_INLINE void row() {
    if (rows_ == end_) return;
    const char* at = reinterpret_cast<const char*>(*rows_++);
    for (int64_t i = 0; i < bytes_; i += 64) __builtin_prefetch(at + i, 0, 3);
  }
  LANEWISE_INLINE void rows(int count) {
    for (int i = 0; i < count; ++i) row();
  }

 private:
  const T* const* rows_;
  const T* const* end_;
  int64_t bytes_;
};

// sums[r][l] = Σ_d q[r][d] · keys[l][d], unfolded: one vector each.
template <int ROWS, int LINES, class T>
inline void dot_lines(const float* q, int64_t ldq, const T* const* keys, int64_t dim, f32v* sums,
                      int64_t ld) {
  f32v acc[ROWS][LINES] = {};
  const T* k[LINES];
  for (int l = 0; l < LINES; ++l) k[l] = keys[l];
  const auto half = [&]<int HALF>(Half<HALF>, int64_t d, const T* const* from) LANEWISE_LAMBDA {
    if constexpr (ROWS > LINES) {
      f32v kv[LINES];
#pragma GCC unroll 8
      for (int l = 0; l < LINES; ++l) kv[l] = load_half<HALF>(from[l] + d);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const f32v qv = in_register(load(q + r * ldq + HALF * kLanes));
#pragma GCC unroll 8
        for (int l = 0; l < LINES; ++l) acc[r][l] += qv * kv[l];
      }
    } else {
      f32v qv[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) qv[r] = in_register(load(q + r * ldq + HALF * kLanes));
#pragma GCC unroll 8
      for (int l = 0; l < LINES; ++l) {
        const f32v kv = load_half<HALF>(from[l] + d);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) acc[r][l] += qv[r] * kv;
      }
    }
  };
  int64_t d = 0;
  for (; d + kTwin <= dim; d += kTwin, q += kTwin) {
    half(Half<0>{}, d, k);
    half(Half<1>{}, d, k);
  }
  if (d < dim) {
    T rest[LINES][kTwin];
    const T* from[LINES];
    for (int l = 0; l < LINES; ++l) {
      copy_rest(k[l] + d, dim - d, rest[l]);
      from[l] = rest[l];
    }
    half(Half<0>{}, 0, from);
    half(Half<1>{}, 0, from);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int l = 0; l < LINES; ++l) sums[r * ld + l] = acc[r][l];
}

// to[r][:] = factor[r] · to[r][:] + Σ_t weights[r][t] · values[t][:], so many vectors of them,
// counted from half HALF of the twin at element d; or, where REST, one twin of which `rest`
// elements are there.
template <int ROWS, int VECTORS, int HALF, bool REST, class T>
inline void sum_values(const float* weights, int64_t ldw, const T* const* values, int count,
                       int64_t d, int64_t rest, const float* factor, float* to, int64_t ld) {
  f32v acc[ROWS][VECTORS] = {};
  for (int t = 0; t < count; ++t) {
    const T* from = values[t] + d;
    T twin[REST ? kTwin : 1];
    if constexpr (REST) {
      copy_rest(from, rest, twin);
      from = twin;
    }
    if constexpr (ROWS > VECTORS) {
      f32v value[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) value[v] = load_vector<HALF>(from, v);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const f32v weight = broadcast(weights[r * ldw + t]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) acc[r][v] += weight * value[v];
      }
    } else {
      f32v weight[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) weight[r] = broadcast(weights[r * ldw + t]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        const f32v value = in_register(load_vector<HALF>(from, v));
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) acc[r][v] += weight[r] * value;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      float* at = to + r * ld + v * kLanes;
      store(at, acc[r][v] + load(at) * factor[r]);
    }
}

// Calls f(first, Rows<count>{}) for passes over `rows` of equal height within one.
template <class F>
LANEWISE_INLINE void for_each_pass(int rows, F&& f) {
  const int passes = static_cast<int>(ceil_div(rows, kPassRows));
  for (int pass = 0; pass < passes; ++pass) {
    const int first = rows * pass / passes;
    with_rows<kPassRows>(rows * (pass + 1) / passes - first,
                         [&]<int ROWS>(Rows<ROWS> height) { f(first, height); });
  }
}

inline constexpr int kMostChunk = 144;

// To whole twins.
LANEWISE_INLINE int64_t padded(int64_t dim) { return ceil_div(dim, kTwin) * kTwin; }

// All rows of a query stack over a range of keys, a chunk at a time.
template <class T>
class Decode {
 public:
  // Where the keys and values of a chunk lie.
  struct Places {
    int count = 0;
    const T *keys[kMostChunk], *values[kMostChunk];
  };

  // Floats that one needs, whole cache lines.
  static int64_t floats(const AttentionParams& p, int64_t rows) {
    return ceil_div(rows * (padded(p.dim) + padded(p.value_dim) + kMostChunk), 16) * 16;
  }

  Decode(const QueryStack& s, Range piece, float* room)
      : p(s.p),
        options(query_options(p)),
        stack(s),
        rows(static_cast<int>(s.size())),
        scale(product_scale(p.scale, p.softcap)),
        ldq(padded(p.dim)),
        ldo(padded(p.value_dim)),
        k(key_rows<T>(p, p.k, p.k_strides, s.sequence, s.kv_head)),
        v(key_rows<T>(p, p.v, p.v_strides, s.sequence, s.kv_head)) {
    // A chunk of K, one of V and those that are on their way share L1, and leave room for queries
    // and sums.
    constexpr int64_t kChunkBytes = 6 << 10;
    const int64_t row_bytes = larger(p.dim, p.value_dim) * static_cast<int64_t>(sizeof(T));
    chunk = smaller(kMostChunk, ceil_div(kChunkBytes, row_bytes * kGrain) * kGrain);
    q = room;
    out = q + rows * ldq;
    scores = out + rows * ldo;
    softmax.start();
    fill(out, rows * ldo, 0.0f);
    const T* q_rows[kMostDecodeRows];
    stack.rows(static_cast<const T*>(p.q), p.q_strides, 0, rows, q_rows);
    for (int r = 0; r < rows; ++r) arrange(q_rows[r], p.dim, q + r * ldq);
    stack.describe(0, rows, columns);
    all = rows_met(options, columns.first(), columns.last(), piece);
  }

  Range keys() const { return all; }
  Range chunk_at(int64_t begin) const { return {begin, smaller(begin + chunk, all.end)}; }

  void find(Range tokens, Places& places) const {
    places.count = static_cast<int>(tokens.size());
    find(k, tokens, places.keys);
    find(v, tokens, places.values);
  }

  // Takes in the keys `now`, and fetches what comes next.
  void meet_chunk(Range now, const Places& places, const Places& next) {
    meet_keys(now, places.keys, Fetcher<T>(next.values, next.count, p.value_dim));
    weigh(now);
    mix_values(places.count, places.values, Fetcher<T>(next.keys, next.count, p.dim));
  }

  void leave(const Partial& partial) {
    for (int r = 0; r < rows; ++r) {
      float* row = out + r * ldo;
      partial.max[r] = softmax.max[r];
      partial.sum[r] = softmax.sum[r];
      // Weights of 0 may have met NaN.
      if (softmax.sum[r] == 0.0f) fill(row, ldo, 0.0f);
      restore_order<T>(row, ldo);
      __builtin_memcpy(partial.out + r * p.value_dim, row, p.value_dim * sizeof(float));
    }
  }

 private:
  // Where the tokens of a chunk lie; to whole folds, the last one again and again.
  static void find(const TokenRows<T>& from, Range tokens, const T** to) {
    if (tokens.empty()) return;
    int i = 0;
    for (int64_t t = tokens.begin; t < tokens.end;) {
      const T* row = from.row(t);
      for (const int64_t end = from.piece_end(t, tokens.end); t < end; ++t, row += from.stride)
        to[i++] = row;
    }
    for (; i % kFold; ++i) to[i] = to[i - 1];
  }

  void meet_keys(Range now, const T* const* keys, Fetcher<T> next_values) {
    const int count = static_cast<int>(now.size());
    for (int j = 0; j < count; j += kFold)
      for_each_pass(rows, [&]<int ROWS>(int first, Rows<ROWS>) {
        constexpr int kLines = dot_lines_of(ROWS);
        f32v sums[ROWS][kFold];
        const int lines = static_cast<int>(smaller(kFold, count - j));
        for (int l = 0; l < lines; l += kLines) {
          if (first == 0) next_values.rows(kLines);
          dot_lines<ROWS, kLines>(q + first * ldq, ldq, keys + j + l, p.dim, &sums[0][l], kFold);
        }
        for (int r = 0; r < ROWS; ++r)
          for (int l = 0; l < lines; l += kLanes)
            store(scores + (first + r) * chunk + j + l,
                  sum_each(reinterpret_cast<const f32v(&)[kLanes]>(sums[r][l])) * scale);
      });
  }

  // scores become weights.
  void weigh(Range now) {
    const int64_t count = ceil_div(now.size(), kLanes) * kLanes;
    float top[kPanelCols], total[kPanelCols];
    fill(top, kPanelCols, -__builtin_inff());
    fill(total, kPanelCols, 0.0f);
    for (int r = 0; r < rows; ++r) {
      float* row = scores + r * chunk;
      apply_row_options(options, columns, r, now, row);
      f32v most = load(row);
      for (int64_t j = kLanes; j < count; j += kLanes)
        most = lanewise::LANEWISE_TARGET::max(most, load(row + j));
      top[r] = lanewise::LANEWISE_TARGET::max(most);
    }
    softmax.raise(top);
    for (int r = 0; r < rows; ++r) total[r] = softmax.weigh_row(r, scores + r * chunk, count);
    softmax.add(total);
  }

  void mix_values(int count, const T* const* values, Fetcher<T> next_keys) {
    const int64_t vectors = p.value_dim / kTwin * 2, rest = p.value_dim % kTwin;
    for_each_pass(rows, [&]<int ROWS>(int first, Rows<ROWS>) {
      constexpr int kVectors = vectors_of(ROWS);
      const float *weights = scores + first * chunk, *factor = softmax.factor + first;
      float* to = out + first * ldo;
      const int64_t steps = ceil_div(vectors, kVectors);
      for (int64_t i = 0; i < steps; ++i) {
        if (first == 0) next_keys.rows(static_cast<int>(ceil_div(chunk, steps)));
        const int64_t v = vectors * i / steps, half = kPairs ? v % 2 : 0;
        const int64_t d = (v - half) * kLanes;
        with_rows<kVectors>(
            static_cast<int>(vectors * (i + 1) / steps - v), [&]<int VECTORS>(Rows<VECTORS>) {
              const auto sum = [&]<int HALF>(Half<HALF>) {
                sum_values<ROWS, VECTORS, HALF, false>(weights, chunk, values, count, d, 0, factor,
                                                       to + v * kLanes, ldo);
              };
              if constexpr (kPairs)
                half ? sum(Half<1>{}) : sum(Half<0>{});
              else
                sum(Half<0>{});
            });
      }
      if (rest)
        sum_values<ROWS, 2, 0, true>(weights, chunk, values, count, vectors * kLanes, rest, factor,
                                     to + vectors * kLanes, ldo);
    });
  }

  static constexpr bool kPairs = std::is_same_v<T, bf16>;

  const AttentionParams& p;
  const ScoreOptions options;
  const QueryStack stack;
  const int rows;
  const float scale;
  const int64_t ldq, ldo;
  const TokenRows<T> k, v;
  int64_t chunk;
  Range all;
  float *q, *out, *scores;
  Columns columns;
  Softmax softmax;
};

// Key heads whose keys often lie side by side, token by token: met in turns, chunk by chunk, so
// that memory is read from end to end.
inline constexpr int kMostHeadsTogether = 8;

// heads[i].leave() is the caller's.
template <class T>
inline void decode_together(Decode<T>* heads, int count) {
  typename Decode<T>::Places places[2];
  int here = 0;
  const Range all = heads[0].keys();  // the same for every head
  Range now = heads[0].chunk_at(all.begin);
  heads[0].find(now, places[here]);
  for (Range next; now.begin < all.end; now = next) {
    next = heads[0].chunk_at(now.end);
    for (int i = 0; i < count; ++i, here = !here) {
      if (i + 1 < count)
        heads[i + 1].find(now, places[!here]);
      else
        heads[0].find(next, places[!here]);
      heads[i].meet_chunk(now, places[here], places[!here]);
    }
  }
}

}  // namespace lanewise::LANEWISE_TARGET
