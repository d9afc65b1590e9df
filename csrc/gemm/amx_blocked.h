// One thread's part of a product by AMX, in the blocks of the plan.
#pragma once

#include "gemm/amx_plan.h"
#include "gemm/amx_tile.h"
#include "gemm/blocked.h"

namespace lanewise::LANEWISE_TARGET {

// Steps of k, the last of which may be padded.
inline int64_t amx_steps(int64_t k) { return divide_up(k, kAmxDepth); }

// Rows of a matrix at depths [depth, depth + kc), one step of k, kAmxRowBytes apart and padded with
// zeros. Where they are not contiguous in k, pairs of k are packed side by side, then transposed.
inline void pack_amx_tile(const MatrixRef& m, int64_t row, int rows, int64_t depth, int64_t kc,
                          char* to) {
  if (m.col_stride == 1) {
    for (int r = 0; r < rows; ++r, to += kAmxRowBytes) {
      const bf16* from = at<bf16>(m, row + r, depth);
      if (kc == kAmxDepth) {
        __builtin_memcpy(to, from, kAmxRowBytes);
      } else {
        __builtin_memset(to, 0, kAmxRowBytes);
        __builtin_memcpy(to, from, kc * sizeof(bf16));
      }
    }
    return;
  }
  bf16x2 pairs[kAmxDepth / 2 * kAmxRows] = {};
  pack_panel<kAmxRows>(at<bf16>(m, row, depth), m.row_stride, m.col_stride, rows, rows, kc, pairs);
  const bf16x2* line[kLanes];
  for (int i = 0; i < kLanes; ++i) line[i] = pairs + i * kAmxRows;
  f32v words[kLanes];
  transposed_block<bf16x2>(line, 0, words);
  for (int r = 0; r < rows; ++r)
    store(reinterpret_cast<bf16x2*>(to + r * kAmxRowBytes), as_uint(words[r]));
}

// The products of one thread. A pair of tiles at a time goes over a piece of k; where there are
// more, its sums wait in L2.
class AmxProduct {
 public:
  AmxProduct(const GemmParams& p, const AmxPlan& plan)
      : p_(p),
        plan_(plan),
        steps_(p.k / kAmxDepth),
        rest_(p.k % kAmxDepth),
        panel_bytes_(amx_steps(p.k) * (kAmxDepth / 2) * plan.width * 4) {}

  void multiply(Share pairs, Share panels) {
    const int64_t count = p_.gated ? 2 : 1;
    // A gate's sums wait for the others; so do those of a piece of k for the next.
    waits_ = p_.gated || amx_steps(p_.k) > plan_.piece;
    const int64_t slots = waits_ ? least(plan_.block_pairs, pairs.end - pairs.begin) : 1;
    sums_ = scratch_of<float>(Scratch::tile, ((count + 1) * slots + 2) * kSlot);
    gate_sums_ = sums_ + slots * kSlot;
    chain_ = sums_ + count * slots * kSlot;
    part_ = chain_ + slots * kSlot;
    own_panels_ = panels.end - panels.begin;
    kept_ = plan_.keeps_panels ? own_panels_ : 1;
    if (!p_.b.packed) room_ = scratch_of<char>(Scratch::panels, count * kept_ * panel_bytes_);
    for (int64_t i = pairs.begin; i < pairs.end; i += plan_.block_pairs)
      multiply_block({i, least(i + plan_.block_pairs, pairs.end)}, panels,
                     i == pairs.begin || !plan_.keeps_panels);
  }

 private:
  static constexpr int64_t kSlot = 2 * kAmxRows * kTileCols;  // sums of a pair of tiles

  // The operand that is read as rows, and the one that is read as pairs, as [lines, k].
  MatrixRef rows_of(const RightRef& right) const {
    return plan_.swapped ? transposed(right.matrix) : p_.a;
  }
  MatrixRef pairs_of(const RightRef& right) const {
    return plan_.swapped ? p_.a : transposed(right.matrix);
  }
  static MatrixRef transposed(const MatrixRef& m) {
    return {m.data, m.dtype, m.col_stride, m.row_stride};
  }

  // Rows of a block as tiles read them: where they lie, and what is left of k apart, padded with
  // zeros; or packed, [pair][step][row].
  struct Block {
    const char *data, *rest;
    int64_t stride, step;  // bytes
    int64_t pair;          // bytes of a packed pair, 0 in place
  };

  int64_t first_row(int64_t pair) const { return pair * 2 * plan_.height; }
  // The rows of a pair's tiles.
  int64_t upper_row(int64_t pair) const {
    return least(first_row(pair), plan_.rows - plan_.height);
  }
  int64_t lower_row(int64_t pair) const {
    return least(first_row(pair) + plan_.height, plan_.rows - plan_.height);
  }

  Block block_of(const MatrixRef& m, Share pairs, char* room) const {
    const int64_t step = 2 * plan_.height * kAmxRowBytes, steps = amx_steps(p_.k);
    if (packs_rows(m)) {
      for (int64_t i = pairs.begin; i < pairs.end; ++i)
        for (int64_t s = 0; s < steps; ++s) {
          char* to = room + ((i - pairs.begin) * steps + s) * step;
          const int64_t depth = s * kAmxDepth, kc = least(kAmxDepth, p_.k - depth);
          pack_amx_tile(m, upper_row(i), plan_.height, depth, kc, to);
          pack_amx_tile(m, lower_row(i), plan_.height, depth, kc, to + step / 2);
        }
      return {room, nullptr, kAmxRowBytes, step, steps * step};
    }
    const int64_t row = upper_row(pairs.begin);
    const int64_t rows = least(first_row(pairs.end), plan_.rows) - row;
    for (int64_t r = 0; rest_ && r < rows; ++r)
      pack_amx_tile(m, row + r, 1, steps_ * kAmxDepth, rest_, room + r * kAmxRowBytes);
    const char* data = reinterpret_cast<const char*>(at<bf16>(m, row, 0));
    return {data, room, m.row_stride * 2, kAmxRowBytes, 0};
  }

  // The tiles of pair i of a block that begins with pair `first`, from a step of k on.
  AmxRows rows_of(const Block& block, int64_t i, int64_t first, int64_t step) const {
    if (block.pair) {
      const char* pair = block.data + (i - first) * block.pair;
      const char *data = pair + step * block.step, *rest = pair + steps_ * block.step;
      const int64_t lower = block.step / 2;
      return {{data, data + lower}, {rest, rest + lower}, block.stride, block.stride, block.step};
    }
    const int64_t row = upper_row(i) - upper_row(first), lower = lower_row(i) - upper_row(i);
    const char* data = block.data + row * block.stride + step * block.step;
    const char* rest = block.rest + row * kAmxRowBytes;
    return {{data, data + lower * block.stride},
            {rest, rest + lower * kAmxRowBytes},
            block.stride,
            kAmxRowBytes,
            block.step};
  }

  // Rows that meet many panels repay it: packed, they are read in order.
  bool packs_rows(const MatrixRef& m) const {
    constexpr int64_t kManyPanels = 8;
    return m.col_stride != 1 || (!plan_.swapped && own_panels_ >= kManyPanels);
  }

  int64_t block_bytes(const MatrixRef& m) const {
    const int64_t rows = 2 * plan_.height * plan_.block_pairs;
    return rows * kAmxRowBytes * (packs_rows(m) ? amx_steps(p_.k) : rest_ ? 1 : 0);
  }

  void multiply_block(Share pairs, Share panels, bool packs) {
    const int64_t own = block_bytes(rows_of(p_.b));
    const bool two = p_.gated && plan_.swapped;
    char* room = scratch_of<char>(Scratch::rows, two ? 2 * own : own);
    const Block rows = block_of(rows_of(p_.b), pairs, room);
    const Block gate_rows = two ? block_of(rows_of(p_.gate), pairs, room + own) : rows;
    for (int64_t q = panels.begin; q < panels.end; ++q) {
      char* packed = room_ + (q - panels.begin) % kept_ * panel_bytes_;
      char* gate = plan_.swapped ? packed : packed + kept_ * panel_bytes_;
      if (p_.gated)
        each_tile(pairs, gate_rows, panel_of(p_.gate, q, gate, packs), p_.gate, q, packs,
                  gate_sums_, [](int64_t, float*) {});
      each_tile(pairs, rows, panel_of(p_.b, q, packed, packs && !two), p_.b, q, packs, sums_,
                [&](int64_t pair, float* sums) { finish(pair, q, sums); });
    }
  }

  // Panel q: of a packed weight where it lies, else in `room`, where it is or is packed now.
  AmxPairs panel_of(const RightRef& right, int64_t q, char* room, bool packs) {
    const int64_t stride = plan_.width * 4, steps = stride * (kAmxDepth / 2) * steps_;
    if (!right.packed) {
      if (packs) pack_panel_of(right, q, room);
      return {room, room + steps, stride};
    }
    const int64_t words = divide_up(p_.k, 2);
    const char* data = static_cast<const char*>(right.matrix.data) + q * words * stride;
    if (rest_ == 0) return {data, nullptr, stride};
    char* rest = reinterpret_cast<char*>(part_);
    const int64_t bytes = words * stride - steps;
    __builtin_memcpy(rest, data + steps, bytes);
    __builtin_memset(rest + bytes, 0, stride * (kAmxDepth / 2) - bytes);
    return {data, rest, stride};
  }

  // In whole steps of k, what is missing zero.
  void pack_panel_of(const RightRef& right, int64_t q, char* room) const {
    const MatrixRef m = pairs_of(right);
    const int64_t line = q * plan_.width, there = plan_.cols - line;
    const bf16* from = at<bf16>(m, line, 0);
    bf16x2* to = reinterpret_cast<bf16x2*>(room);
    if (plan_.width == kTileCols)
      pack_panel<kTileCols>(from, m.row_stride, m.col_stride, there, kTileCols, p_.k, to);
    else
      pack_panel<kAmxRows>(from, m.row_stride, m.col_stride, there, kAmxRows, p_.k, to);
    const int64_t packed = divide_up(p_.k, 2) * plan_.width * 4;
    __builtin_memset(room + packed, 0, panel_bytes_ - packed);
  }

  // Sums of every pair of tiles beside panel q, piece by piece of k; then f(pair, sums).
  template <class F>
  void each_tile(Share pairs, const Block& block, const AmxPairs& panel, const RightRef& right,
                 int64_t q, bool packs, float* sums, F&& f) {
    const int64_t all = amx_steps(p_.k);
    Upcoming upcoming = next_panel(right, q, panel, packs);
    upcoming.spread_over((pairs.end - pairs.begin) * all);
    const bool wide = plan_.cols - q * plan_.width > kAmxRows && plan_.width > kAmxRows;
    for (int64_t step = 0, end; step == 0 || step < all; step = end) {
      const int64_t done = step % plan_.chain;  // of the chain
      end = least(step + least(plan_.piece, plan_.chain - done), all);
      const bool last = end == all, rest = last && rest_;
      const bool joins = step - done > 0, ends = last || end % plan_.chain == 0;
      const int64_t whole = (rest ? end - 1 : end) - step;
      for (int64_t i = pairs.begin; i < pairs.end; ++i) {
        const int64_t second = lower_row(i) - upper_row(i);
        const int tiles = first_row(i) + plan_.height < plan_.rows ? 2 : 1;
        const AmxRows rows = rows_of(block, i, pairs.begin, step);
        const AmxPairs b = {panel.data + step * panel.stride * (kAmxDepth / 2), panel.rest,
                            panel.stride};
        const int64_t slot = waits_ ? (i - pairs.begin) * kSlot : 0;
        if (last && !plan_.swapped) prefetch_patch(p_, patch(i, q));
        run_tile(tiles, wide, whole, rest, rows, b, upcoming, done > 0,
                 (joins ? chain_ : sums) + slot, second);
        if (joins && ends) {
          const int64_t rows_there = tiles == 2 ? second + plan_.height : plan_.height;
          for (int64_t at = slot; at < slot + rows_there * kTileCols; at += kLanes)
            store(sums + at, load(sums + at) + load(chain_ + at));
        }
        if (last) f(i, sums + slot);
      }
    }
  }

  // Where a pair's sums go.
  Patch patch(int64_t pair, int64_t q) const {
    const int64_t row = first_row(pair), col = q * plan_.width;
    return {.row = row,
            .col = col,
            .rows = static_cast<int>(least(2 * plan_.height, plan_.rows - row)),
            .cols = static_cast<int>(least(plan_.width, plan_.cols - col))};
  }

  void run_tile(int tiles, bool wide, int64_t steps, bool rest, const AmxRows& rows,
                const AmxPairs& b, Upcoming& upcoming, bool resume, float* to, int64_t second) {
    if (tiles == 2 && wide)
      amx_tile<2, 2>(steps, rest, rows, b, upcoming, resume, to, second);
    else if (tiles == 2)
      amx_tile<2, 1>(steps, rest, rows, b, upcoming, resume, to, second);
    else if (wide)
      amx_tile<1, 2>(steps, rest, rows, b, upcoming, resume, to, second);
    else
      amx_tile<1, 1>(steps, rest, rows, b, upcoming, resume, to, second);
  }

  // What the tiles beside panel q are to fetch: the next panel, or what it will be packed from.
  Upcoming next_panel(const RightRef& right, int64_t q, const AmxPairs& panel, bool packs) const {
    if (plan_.swapped) return {};
    const int64_t col = (q + 1) * plan_.width, lines = least(plan_.width, plan_.cols - col);
    if (lines <= 0) return {};
    const MatrixRef& m = right.matrix;
    if (right.packed || !packs) {
      const int64_t bytes = right.packed ? divide_up(p_.k, 2) * plan_.width * 4 : panel_bytes_;
      return {panel.data + bytes, 1, 0, bytes};
    }
    if (m.row_stride == 1) return {at<bf16>(m, 0, col), lines, m.col_stride * 2, p_.k * 2};
    if (m.col_stride == 1) return {at<bf16>(m, 0, col), p_.k, m.row_stride * 2, lines * 2};
    return {};
  }

  void finish(int64_t pair, int64_t q, float* sums) {
    const Patch to = patch(pair, q);
    const int64_t skip = (to.row - upper_row(pair)) * kTileCols;
    float *c = sums + skip, *gate = p_.gated ? gate_sums_ + (c - sums_) : nullptr;
    if (!plan_.swapped)
      return finish_tile(p_, c, gate, kTileCols, PanelBias(p_.bias, to.col, to.cols),
                         PanelBias(p_.gate_bias, to.col, to.cols), to);
    transpose(c, part_);
    if (gate) transpose(gate, part_ + kSlot);
    finish_tile(p_, part_, gate ? part_ + kSlot : nullptr, kTileCols,
                PanelBias(p_.bias, to.row, to.rows), PanelBias(p_.gate_bias, to.row, to.rows),
                {.row = to.col, .col = to.row, .rows = to.cols, .cols = to.rows});
  }

  // A slot of sums; where a panel has 16 columns, half of it.
  void transpose(const float* from, float* to) const {
    for (int r = 0; r < 2 * kAmxRows; r += kLanes)
      for (int c = 0; c < plan_.width; c += kLanes) {
        const float* line[kLanes];
        for (int i = 0; i < kLanes; ++i) line[i] = from + (r + i) * kTileCols;
        f32v columns[kLanes];
        transposed_block<float>(line, c, columns);
        for (int i = 0; i < kLanes; ++i) store(to + (c + i) * kTileCols + r, columns[i]);
      }
  }

  const GemmParams& p_;
  const AmxPlan& plan_;
  const int64_t steps_, rest_;  // whole steps of k, and elements beyond them
  const int64_t panel_bytes_;   // of a packed panel, whole steps
  bool waits_ = false;
  int64_t own_panels_ = 0, kept_ = 0;  // panels: of this thread, and of those that stay packed
  float *sums_ = nullptr, *gate_sums_ = nullptr;
  float* chain_ = nullptr;  // of pairs, from the second chain on
  float* part_ = nullptr;   // what is left of a packed panel's k, or a pair's sums transposed
  char* room_ = nullptr;
};

}  // namespace lanewise::LANEWISE_TARGET
