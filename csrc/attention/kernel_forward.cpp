// Cuts the work of all sequences into units, has each done by the kernel that suits it, and joins
// what was cut along the keys. How it is cut depends on the shapes alone, not on the threads, where
// that could show in the sums.
#include "attention/decode.h"
#include "attention/kernel.h"
#include "attention/prefill.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Fewer queries than that, all in one unit, leave threads idle unless their keys are cut as well.
constexpr int64_t kFewColumns = 128;
// So many pieces let a large machine share one sequence and bound the memory for their sums;
// shorter ones than these are not worth joining.
constexpr int64_t kMostPieces = 256, kShortestDecode = 512, kShortestPrefill = 2048;

class Plan {
 public:
  explicit Plan(const AttentionParams& params)
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
    blocking = choose_blocking(p.queries * group, columns,
                               {.row = dims, .column = dims, .score_panels = 1}, threads);
  }

  int64_t columns(const Sequence& s) const { return s.queries * group; }
  bool decodes(const Sequence& s) const { return columns(s) <= kMostDecodeRows; }
  int64_t column_units(const Sequence& s) const {
    return decodes(s) ? columns(s) > 0 : blocking.units(columns(s));
  }
  int64_t keys_per_piece(const Sequence& s) const {
    return decodes(s) ? piece_keys : larger(piece_keys, kShortestPrefill);
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
    return larger(kShortestDecode, ceil_div(total, kMostPieces));
  }
};

template <class T>
class Forward {
 public:
  explicit Forward(const AttentionParams& params)
      : p(params),
        plan(p),
        state(static_cast<int64_t*>(scratch(Scratch::state, state_size() * sizeof(int64_t)))),
        units(p, state, [&](const Sequence& s) { return plan.column_units(s) * plan.pieces(s); }),
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
      units.at(task, [&](const Sequence& s, int64_t head, int64_t unit) {
        run_unit(QueryStack(p, s, head), unit);
      });
    });
  }

 private:
  int64_t state_size() const { return 2 * (p.batch + 1) + p.batch * p.kv_heads; }

  void run_unit(const QueryStack& stack, int64_t unit) {
    const Sequence& s = stack.sequence;
    const int64_t pieces = plan.pieces(s), size = plan.keys_per_piece(s), piece = unit % pieces;
    const int64_t columns = stack.size(), column_units = plan.column_units(s);
    // A causal unit's work grows with its queries: the last ones first.
    const int64_t n0 = (column_units - 1 - unit / pieces) * plan.blocking.columns;
    if (pieces == 1 && !plan.decodes(s))
      return Prefill<T>(plan.blocking, stack, n0, {0, s.keys}).run(nullptr);
    if (pieces == 1) {
      const int64_t floats = Partials::floats(columns, p.value_dim, 1);
      const Partials alone(static_cast<float*>(scratch(Scratch::tile, floats * sizeof(float))),
                           columns, p.value_dim);
      Decode<T>(stack, {0, s.keys}).run(alone[0]);
      return alone.join<T>(stack, 1);
    }
    const Partials all(partials + room[s.batch] + stack.kv_head * plan.partial_floats(s), columns,
                       p.value_dim);
    const Range keys = {piece * size, smaller((piece + 1) * size, s.keys)};
    if (plan.decodes(s)) {
      Decode<T>(stack, keys).run(all[piece]);
    } else {
      const Partial partial = all[piece];
      Prefill<T>(plan.blocking, stack, n0, keys).run(&partial);
    }
    int64_t& count = done[s.batch * p.kv_heads + stack.kv_head];
    if (__atomic_add_fetch(&count, 1, __ATOMIC_ACQ_REL) == column_units * pieces)
      all.join<T>(stack, pieces);
  }

  const AttentionParams& p;
  const Plan plan;
  int64_t* const state;
  const Units units;
  int64_t* const room;  // [batch + 1]: where the sums of each sequence's pieces begin
  int64_t* const done;  // [batch, kv_heads]: units that have left theirs
  float* partials;
};

}  // namespace

void attention(const AttentionParams& p) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  with_dtype(p.dtype, [&](auto element) { Forward<decltype(element)>(p).run(); });
}

}  // namespace lanewise::LANEWISE_TARGET
