// The products of attention by AMX, of bfloat16, summed in float32.
//
// Scores are K · panel: tiles of 16 keys × 32 elements meet pairs of elements × 16 queries, and
// give 16 keys × 16 queries, which is how panels hold them. Outputs are Vᵀ · weights: tiles of 16
// elements × 32 keys meet pairs of keys × 16 queries. So K is copied into tiles as it is, V
// transposed, and the pairs of weights take the place of their scores.
//
// A weight is the sum of two bfloat16 numbers, its head and the head of what that leaves, and so
// good to 2⁻¹⁶; one alone would be wrong by 2⁻⁹ when rounded. The multiplier waits for the softmax
// in any case.
#pragma once

#include "attention/prefill.h"
#include "gemm/amx_tile.h"

namespace lanewise::LANEWISE_TARGET {

class AmxProducts {
 public:
  // As many as repay transposing V once more for them.
  static constexpr int64_t kMostColumns = 256;

  struct Setting {
    TileRegisters tiles{kAmxRows};
  };

  AmxProducts(const AttentionParams& params, const Blocking& b)
      : p(params),
        steps_(ceil_div(p.dim, kAmxDepth)),
        key_steps_(ceil_div(b.rows, kAmxDepth) + 1),
        out_rows(ceil_div(p.value_dim, 2 * kAmxRows) * 2 * kAmxRows) {
    const int64_t rows = key_steps_ * kAmxDepth;
    carve({{&q_, b.columns * steps_ * kAmxDepth / 2},
           {&out_, b.columns * out_rows},
           {&scores_, rows * kPanelCols},
           {&bias, p.bias_type == BiasType::none ? 0 : rows * kPanelCols},
           {&k_, rows / kAmxRows * steps_ * kTileFloats},
           {&v_, out_rows / kAmxRows * key_steps_ * kTileFloats}});
    const float scale = product_scale(p.scale, p.softcap);
    const bool options = p.softcap != 0.0f || p.slopes || p.bias_type != BiasType::none;
    (options || !(scale > 0.0f) ? scale_ : late_scale_) = scale;
  }

  void own(int i, const bf16* const* rows, int columns) {
    float* pairs = q_panel(i);
    for (int64_t d = 0; d < p.dim; d += kAmxDepth, pairs += kAmxDepth / 2 * kPanelCols)
      for (int c0 = 0; c0 < kPanelCols; c0 += kLanes) {
        f32v tile[kLanes];
        for (int c = 0; c < kLanes; ++c)
          tile[c] = c0 + c < columns ? words(rows[c0 + c] + d, p.dim - d) : broadcast(0.0f);
        transpose(tile);
        for (int j = 0; j < kLanes; ++j) store(pairs + j * kPanelCols + c0, tile[j]);
      }
  }

  // Tiles begin at multiples of their depth, wherever a unit's keys do: a column's sums are the
  // same sums for any cut.
  void hold(Range block, const TokenRows<bf16>& k, const TokenRows<bf16>& v, bool) {
    first_ = block.begin / kAmxDepth * kAmxDepth;
    hold_keys(block, k);
    for (int64_t t = first_; t < block.end; t += kAmxDepth) hold_values(t, block, v);
  }

  float* meet(int i, Range keys) {
    const Range rows = {keys.begin - first_, keys.end - first_};
    for (int64_t r = whole(rows).begin; r < rows.end; r += kAmxDepth) {
      const float* k = k_ + r / kAmxRows * steps_ * kTileFloats;
      const float* pairs = q_panel(i);
      watch_memory();
      zero_sums();
      for (int64_t s = 0; s < steps_; ++s, k += kTileFloats, pairs += kAmxDepth / 2 * kPanelCols) {
        const char* const tiles[2] = {bytes(k), bytes(k + steps_ * kTileFloats)};
        amx_step<2, 2>(tiles, kAmxRowBytes, bytes(pairs), kPanelCols * sizeof(float));
      }
      store_sums<2, 2>(scores_ + r * kPanelCols, kAmxRows);
      watch_memory();
    }
    float* scores = scores_ + rows.begin * kPanelCols;
    if (scale_ != 1.0f)
      for_each_vector(scores, rows.size(), [&](f32v s, int64_t, int) { return s * scale_; });
    return scores;
  }

  // Keys of the first and the last tile that no query meets weigh nothing.
  void weigh(Range keys, Softmax& softmax) {
    const Range rows = {keys.begin - first_, keys.end - first_}, all = whole(rows);
    constexpr float kNever = -__builtin_inff();
    fill(scores_ + all.begin * kPanelCols, (rows.begin - all.begin) * kPanelCols, kNever);
    fill(scores_ + rows.end * kPanelCols, (all.end - rows.end) * kPanelCols, kNever);
    f32v top[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) top[v] = broadcast(kNever);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      for (int v = 0; v < kPanelVectors; ++v)
        top[v] = max(top[v], load(scores_ + r * kPanelCols + v * kLanes));
    for (int v = 0; v < kPanelVectors; ++v)
      top[v] = max(load(softmax.max + v * kLanes), top[v] * late_scale_);
    softmax.raise(top) ? weigh_pairs<true>(all, softmax) : weigh_pairs<false>(all, softmax);
  }

  void mix(int i, Range keys, bool started, const float* factor) {
    const Range rows = {keys.begin - first_, keys.end - first_};
    started ? rescale(out(i), factor) : fill(out(i), out_rows * kPanelCols, 0.0f);
    const Range all = whole(rows);
    for (int64_t d = 0; d < out_rows; d += 2 * kAmxRows) {
      const float* v = v_ + (d / kAmxRows * key_steps_ + all.begin / kAmxDepth) * kTileFloats;
      float* sums = out(i) + d * kPanelCols;
      watch_memory();
      load_sums<2, 2>(sums, kAmxRows);
      for (int64_t r = all.begin; r < all.end; r += kAmxDepth, v += kTileFloats) {
        _tile_loadd(4, bytes(v), kAmxRowBytes);
        _tile_loadd(5, bytes(v + key_steps_ * kTileFloats), kAmxRowBytes);
        multiply(scores_ + r * kPanelCols);
        multiply(scores_ + (r + 1) * kPanelCols);
      }
      store_sums<2, 2>(sums, kAmxRows);
      watch_memory();
    }
  }

  float* out(int i) const { return out_ + i * kPanelCols * out_rows; }

 private:
  static constexpr int64_t kTileFloats = kAmxRows * kAmxRowBytes / sizeof(float);

  static LANEWISE_INLINE const char* bytes(const float* p) {
    return reinterpret_cast<const char*>(p);
  }
  // Tiles 4 and 5 by pairs of weights.
  static LANEWISE_INLINE void multiply(const float* weights) {
    constexpr int64_t kStride = 2 * kPanelCols * sizeof(float);
    _tile_loadd(6, bytes(weights), kStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, bytes(weights + kAmxRows), kStride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  static Range whole(Range rows) {
    return {rows.begin / kAmxDepth * kAmxDepth, ceil_div(rows.end, kAmxDepth) * kAmxDepth};
  }
  float* q_panel(int i) const { return q_ + i * kPanelCols * steps_ * kAmxDepth / 2; }

  // The next 32 elements of a row, zeros where it ends, two to a lane.
  static LANEWISE_INLINE f32v words(const bf16* row, int64_t left) {
    const __mmask32 there = left < kAmxDepth ? (1u << left) - 1 : ~0u;
    return reinterpret_cast<f32v>(_mm512_maskz_loadu_epi16(there, row));
  }

  void hold_keys(Range block, const TokenRows<bf16>& k) {
    for (int64_t t = block.begin; t < block.end;) {
      const bf16* row = k.row(t);
      for (const int64_t end = k.piece_end(t, block.end); t < end; ++t, row += k.stride) {
        const int64_t at = t - first_;
        float* to = k_ + at / kAmxRows * steps_ * kTileFloats + at % kAmxRows * kLanes;
        for (int64_t d = 0; d < p.dim; d += kAmxDepth, to += kTileFloats)
          store(to, words(row + d, p.dim - d));
      }
    }
  }

  // Keys first … first + 31, zeros where the block has none.
  void hold_values(int64_t first, Range block, const TokenRows<bf16>& v) {
    const bf16* rows[kAmxDepth];
    for (int j = 0; j < kAmxDepth; ++j)
      rows[j] = first + j < block.begin || first + j >= block.end ? nullptr : v.row(first + j);
    float* to = v_ + (first - first_) / kAmxDepth * kTileFloats;
    for (int64_t d = 0; d < out_rows; d += kAmxRows, to += key_steps_ * kTileFloats) {
      const int64_t left = p.value_dim - d;
      const auto there = static_cast<__mmask16>(left < 0 ? 0 : left < 16 ? (1u << left) - 1 : ~0u);
      const auto half = [&](const bf16* row) LANEWISE_LAMBDA {
        return row ? zero_extend(reinterpret_cast<u16v>(_mm256_maskz_loadu_epi16(there, row + d)))
                   : u32v{};
      };
      f32v tile[kLanes];
      for (int j = 0; j < kLanes; ++j)
        tile[j] = as_float(half(rows[2 * j]) | half(rows[2 * j + 1]) << 16);
      transpose(tile);
      for (int r = 0; r < kAmxRows; ++r) store(to + r * kLanes, tile[r]);
    }
  }

  // Two rows of scores become a row of pairs of their weights' heads and one of pairs of the rests.
  template <bool INFINITE>
  void weigh_pairs(Range rows, Softmax& softmax) {
    f32v pivot[kPanelVectors], total[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
      pivot[v] = Softmax::pivot(load(softmax.max + v * kLanes));
      total[v] = load(softmax.sum + v * kLanes);
    }
    for (int64_t first = rows.begin; first < rows.end; first += Softmax::kRun) {
      f32v part[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) part[v] = broadcast(0.0f);
      for (int64_t r = first; r < first + Softmax::kRun; r += 2)
        for (int v = 0; v < kPanelVectors; ++v) {
          float* even = scores_ + r * kPanelCols + v * kLanes;
          float* odd = even + kPanelCols;
          const f32v a = Softmax::weight<INFINITE>(load(even) * late_scale_, pivot[v]);
          const f32v b = Softmax::weight<INFINITE>(load(odd) * late_scale_, pivot[v]);
          part[v] += a + b;
          store(even, as_float(pair(a, b)));
          store(odd, as_float(pair(a - as_float(head(a)), b - as_float(head(b)))));
        }
      for (int v = 0; v < kPanelVectors; ++v) total[v] += part[v];
    }
    for (int v = 0; v < kPanelVectors; ++v) store(softmax.sum + v * kLanes, total[v]);
  }
  static LANEWISE_INLINE u32v head(f32v x) { return as_uint(x) & 0xffff0000u; }
  static LANEWISE_INLINE u32v pair(f32v even, f32v odd) { return as_uint(even) >> 16 | head(odd); }

  void rescale(float* out, const float* factor) const {
    bool same = true;
    for (int c = 0; c < kPanelCols; ++c) same &= factor[c] == 1.0f;
    if (same) return;
    for_each_vector(out, out_rows,
                    [&](f32v s, int64_t, int v) { return s * load(factor + v * kLanes); });
  }

  const AttentionParams& p;
  const int64_t steps_;      // of the elements of a key
  const int64_t key_steps_;  // of the keys of a block, at most
  float *q_, *out_, *scores_, *k_, *v_;
  float scale_ = 1.0f;       // of products, before the options are applied,
  float late_scale_ = 1.0f;  // or where there are none, with the softmax
  int64_t first_ = 0;        // key of the tiles

 public:
  const int64_t out_rows;
  float* bias;
};

}  // namespace lanewise::LANEWISE_TARGET
