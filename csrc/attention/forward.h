// Cuts the work of all sequences into units, has each done by the kernel that suits it, and joins
// what was cut along the keys. How it is cut depends on the shapes alone, not on the threads, where
// that could show in the sums.
#pragma once

#include <new>

#include "attention/decode.h"
#include "attention/kernel.h"
#include "attention/prefill.h"

namespace lanewise::LANEWISE_TARGET {

// Fewer queries than that, all in one unit, leave threads idle unless their keys are cut as well.
inline constexpr int64_t kFewColumns = 128;
// So many pieces let a large machine share one sequence and bound the memory for their sums;
// shorter ones than these are not worth joining.
inline constexpr int64_t kMostPieces = 256, kShortestDecode = 256, kShortestPrefill = 2048;

class Plan {
 public:
  Plan(const AttentionParams& params, int64_t most_columns)
      : p(params), group(p.heads / p.kv_heads), piece_keys(keys_of_piece()) {
    int64_t columns = 0;
    double work = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const Sequence s(p, b);
      columns += s.queries * p.heads;
      work += static_cast<double>(s.queries * p.heads) * (s.keys * (p.dim + p.value_dim));
    }
    const int64_t dims = p.dim + p.value_dim;
    threads = useful_threads(work, p.threads);
    blocking = choose_blocking(
        p.queries * group, columns,
        {.row = dims, .column = dims, .score_panels = 1, .most_columns = most_columns}, threads);
  }

  int64_t columns(const Sequence& s) const { return s.queries * group; }
  bool decodes(const Sequence& s) const { return LANEWISE_TARGET::decodes(p, s); }
  int64_t column_units(const Sequence& s) const {
    return decodes(s) ? columns(s) > 0 : blocking.units(columns(s));
  }
  int64_t keys_per_piece(const Sequence& s) const {
    return larger(piece_keys, decodes(s) ? kShortestDecode : kShortestPrefill);
  }
  // Key heads that one unit decodes: neighbours in memory, if they are.
  int64_t heads_together() const {
    return p.k_strides.head < p.k_strides.token ? smaller(p.kv_heads, kMostHeadsTogether) : 1;
  }
  int64_t bunches() const { return ceil_div(p.kv_heads, heads_together()); }
  int64_t units(const Sequence& s) const {
    return pieces(s) * (decodes(s) ? bunches() * column_units(s) : p.kv_heads * column_units(s));
  }
  int64_t pieces(const Sequence& s) const {
    if (columns(s) > kFewColumns) return 1;
    return larger(1, ceil_div(s.keys, keys_per_piece(s)));
  }
  // Room for the sums of a head's pieces.
  int64_t partial_floats(const Sequence& s) const {
    const int64_t n = pieces(s);
    return n > 1 ? Partials::floats(columns(s), p.value_dim, n) : 0;
  }

  const AttentionParams& p;
  const int64_t group;
  const int64_t piece_keys;
  int threads;
  Blocking blocking;

 private:
  int64_t keys_of_piece() const {
    int64_t total = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const Sequence s(p, b);
      if (columns(s) <= kFewColumns) total += s.keys * p.kv_heads;
    }
    return ceil_div(total, kMostPieces);
  }
};

template <class T, class Products>
class Forward {
 public:
  explicit Forward(const AttentionParams& params)
      : p(params),
        plan(p, Products::kMostColumns),
        state(static_cast<int64_t*>(scratch(Scratch::state, state_size() * sizeof(int64_t)))),
        units(p, state, [&](const Sequence& s) { return plan.units(s); }),
        room(state + p.batch + 1),
        done(room + p.batch + 1) {
    room[0] = 0;
    for (int64_t b = 0; b < p.batch; ++b)
      room[b + 1] = room[b] + plan.partial_floats(Sequence(p, b)) * p.kv_heads;
    for (int64_t i = 0; i < p.batch * p.kv_heads; ++i) done[i] = 0;
    partials = static_cast<float*>(scratch(Scratch::shared_panels, room[p.batch] * sizeof(float)));
  }

  void run() {
    parallel_tasks(units.size(), plan.threads, [&](int64_t task) {
      units.at(task, [&](const Sequence& s, int64_t unit) {
        plan.decodes(s) ? decode(s, unit) : prefill(s, unit);
      });
    });
  }

 private:
  int64_t state_size() const { return 2 * (p.batch + 1) + p.batch * p.kv_heads; }

  Range keys_of(const Sequence& s, int64_t piece) const {
    const int64_t size = plan.keys_per_piece(s);
    if (plan.pieces(s) == 1) return {0, s.keys};
    return {piece * size, smaller((piece + 1) * size, s.keys)};
  }

  // All units of a head come one after the other: panels of queries meet its keys while these are
  // in a cache.
  void prefill(const Sequence& s, int64_t unit) {
    const int64_t pieces = plan.pieces(s), column_units = plan.column_units(s);
    const int64_t head_units = pieces * column_units, piece = unit % pieces;
    const QueryStack stack(p, s, unit / head_units);
    // A causal unit's work grows with its queries: the last ones first.
    const int64_t n0 = (column_units - 1 - unit % head_units / pieces) * plan.blocking.columns;
    Prefill<T, Products> work(plan.blocking, stack, n0, keys_of(s, piece));
    if (pieces == 1) return work.run(nullptr);
    const Partials partials_of_head = partials_at(stack);
    const Partial partial = partials_of_head[piece];
    work.run(&partial);
    left(stack, partials_of_head, head_units);
  }

  // The heads of a piece of keys come one after the other, since these may lie in the same pages.
  void decode(const Sequence& s, int64_t unit) {
    const int64_t bunches = plan.bunches(), bunch = unit % bunches, piece = unit / bunches;
    const int64_t pieces = plan.pieces(s), columns = plan.columns(s);
    const int64_t first = p.kv_heads * bunch / bunches;
    const int count = static_cast<int>(p.kv_heads * (bunch + 1) / bunches - first);
    const int64_t own = Decode<T>::floats(p, columns);
    const int64_t alone = pieces == 1 ? Partials::floats(columns, p.value_dim, 1) : 0;
    auto* memory =
        static_cast<float*>(scratch(Scratch::panels, count * (own + alone) * sizeof(float)));
    alignas(Decode<T>) char objects[kMostHeadsTogether * sizeof(Decode<T>)];
    auto* heads = reinterpret_cast<Decode<T>*>(objects);
    for (int i = 0; i < count; ++i)
      new (heads + i) Decode<T>(QueryStack(p, s, first + i), keys_of(s, piece), memory + i * own);
    decode_together(heads, count);
    for (int i = 0; i < count; ++i) {
      const QueryStack stack(p, s, first + i);
      if (pieces == 1) {
        const Partials only(memory + count * own + i * alone, columns, p.value_dim);
        heads[i].leave(only[0]);
        only.join<T>(stack, 1);
      } else {
        const Partials partials_of_head = partials_at(stack);
        heads[i].leave(partials_of_head[piece]);
        left(stack, partials_of_head, pieces);
      }
    }
  }

  Partials partials_at(const QueryStack& stack) const {
    const Sequence& s = stack.sequence;
    return {partials + room[s.batch] + stack.kv_head * plan.partial_floats(s), stack.size(),
            p.value_dim};
  }

  // Whoever leaves the last of a head's partial sums joins them.
  void left(const QueryStack& stack, const Partials& sums, int64_t units_of_head) {
    int64_t& count = done[stack.sequence.batch * p.kv_heads + stack.kv_head];
    if (__atomic_add_fetch(&count, 1, __ATOMIC_ACQ_REL) == units_of_head)
      sums.join<T>(stack, plan.pieces(stack.sequence));
  }

  const AttentionParams& p;
  const Plan plan;
  int64_t* const state;
  const Units units;
  int64_t* const room;  // [batch + 1]: where the sums of each sequence's pieces begin
  int64_t* const done;  // [batch, kv_heads]: units that have left theirs
  float* partials;
};

}  // namespace lanewise::LANEWISE_TARGET
