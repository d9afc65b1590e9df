// Panels: the layout that both passes of attention compute in, and the products between them.
//
// A panel holds a few columns, one per lane of kPanelVectors vectors, and any number of rows. The
// columns are the tokens that a unit of work owns (queries going forward), the rows are the tokens
// they meet (keys), so that
//   - softmax runs down the lanes: no reduction ever crosses them;
//   - a row-major matrix of tokens is read where it lies, one broadcast element at a time, whether
//     its rows meet the panel's (scores = K · panel) or mix them (output = Vᵀ · panel): neither K,
//     V nor the probabilities are transposed, only the owned tokens, once;
//   - a number of keys that does not fill a tile costs nothing.
#pragma once

#include "gemm/tile.h"
#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kPanelVectors = 2;
inline constexpr int kPanelCols = kPanelVectors * kLanes;

// Rows of a register tile: 12 accumulators, 2 panel vectors and 2 broadcasts fill 16 registers; of
// 32 registers 8 rows use but half, yet more would need more row pointers than a CPU has.
inline constexpr int kPanelRows = kRegisters == 16 ? 6 : 8;

// What becomes of a product. `factor` holds one number per column.
enum class Into {
  scaled,      // out = factor · product
  add_scaled,  // out = out + factor · product
  zero,        // out = product
  accumulate,  // out = out + product
  rescale,     // out = factor · out + product
};

// out[r][:] from Σ_k a[r·lda + k] · b[k][:], or a[k·lda + r] where TRANSPOSED. Sums of earlier
// products join last: short sums of short sums err less than one long chain.
template <int ROWS, bool TRANSPOSED>
inline void panel_tile(const float* a, int64_t lda, const float* b, int64_t depth, float* out,
                       Into into, const float* factor) {
  f32v sum[ROWS][kPanelVectors];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = broadcast(0.0f);
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    f32v panel[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) panel[v] = load(b + k * kPanelCols + v * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const f32v element = broadcast(TRANSPOSED ? a[k * lda + r] : a[r * lda + k]);
      for (int v = 0; v < kPanelVectors; ++v) sum[r][v] += element * panel[v];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < kPanelVectors; ++v) {
      float* to = out + r * kPanelCols + v * kLanes;
      if (into == Into::scaled || into == Into::add_scaled) sum[r][v] *= load(factor + v * kLanes);
      if (into == Into::accumulate || into == Into::add_scaled) sum[r][v] += load(to);
      if (into == Into::rescale) sum[r][v] += load(to) * load(factor + v * kLanes);
      store(to, sum[r][v]);
    }
}

// Splits `rows` into tiles whose sizes differ by at most one, higher ones first: a last tile of one
// or two rows would wait for its few sums to finish, and heights that alternate for the branch
// predictor.
template <bool TRANSPOSED>
inline void panel_product(const float* a, int64_t lda, int64_t rows, const float* b, int64_t depth,
                          float* out, Into into, const float* factor) {
  if (rows == 0) return;
  const int64_t tiles = (rows + kPanelRows - 1) / kPanelRows, low = rows / tiles;
  int64_t r = 0;
  const auto run = [&](int64_t height, int64_t count) {
    with_rows<kPanelRows>(static_cast<int>(height), [&]<int ROWS>(Rows<ROWS>) {
      for (const int64_t end = r + count * ROWS; r < end; r += ROWS)
        panel_tile<ROWS, TRANSPOSED>(TRANSPOSED ? a + r : a + r * lda, lda, b, depth,
                                     out + r * kPanelCols, into, factor);
    });
  };
  if (rows % tiles) run(low + 1, rows % tiles);
  run(low, tiles - rows % tiles);
}

// A row-major matrix of float32 tokens, stride 1 along a token.
struct Tokens {
  const float* data;
  int64_t stride;  // from one token to the next

  Tokens from(int64_t token) const { return {data + token * stride, stride}; }
};

// out[t][:] = scale[:] · Σ_d a[t][d] · b[d][:], unscaled where that is null, for `tokens` rows t:
// every token meets every column. Long heads are summed in pieces, which keeps errors small.
inline constexpr int64_t kChain = 128;
inline void meet(Tokens a, int64_t tokens, int64_t dim, const float* b, const float* scale,
                 float* out) {
  for (int64_t d = 0; d < dim; d += kChain) {
    const Into into =
        scale ? (d ? Into::add_scaled : Into::scaled) : (d ? Into::accumulate : Into::zero);
    panel_product<false>(a.data + d, a.stride, tokens, b + d * kPanelCols,
                         dim - d < kChain ? dim - d : kChain, out, into, scale);
  }
}

// out[d][:] from Σ_t a[t][d] · weights[t][:]: every column mixes the tokens.
inline void mix(Tokens a, int64_t tokens, int64_t dim, const float* weights, float* out, Into into,
                const float* factor = nullptr) {
  panel_product<true>(a.data, a.stride, dim, weights, tokens, out, into, factor);
}

// In place: lane j of v[i] becomes lane i of v[j]. Step s swaps blocks of s lanes between the
// vectors i and i + s.
template <int STEP = 1>
LANEWISE_INLINE void transpose(f32v (&v)[kLanes]) {
  const i32v lane = lane_index();
  const i32v odd = (lane & STEP) != 0;
  const i32v low = odd ? lane - STEP + kLanes : lane;
  const i32v high = odd ? lane + kLanes : lane + STEP;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & STEP) continue;
    const f32v a = v[i], b = v[i + STEP];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + STEP] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * STEP < kLanes) transpose<2 * STEP>(v);
}

LANEWISE_INLINE f32v load_some(const auto* p, int64_t count) {
  return count >= kLanes ? load(p) : load(p, static_cast<int>(count));
}

LANEWISE_INLINE void store_some(auto* p, f32v v, int64_t count) {
  count >= kLanes ? store(p, v) : store(p, v, static_cast<int>(count));
}

// tile[i][c] = rows[c][d + i]; what is not there is zero.
template <class T>
LANEWISE_INLINE void load_columns(const T* const* rows, int columns, int64_t d, int64_t dim,
                                  f32v (&tile)[kLanes]) {
  if (columns >= kLanes && dim - d >= kLanes)
    for (int c = 0; c < kLanes; ++c) tile[c] = load(rows[c] + d);
  else
    for (int c = 0; c < kLanes; ++c)
      tile[c] = c < columns ? load_some(rows[c] + d, dim - d) : broadcast(0.0f);
  transpose(tile);
}

// panel[d][c] = rows[c][d]; columns from `columns` on are zero.
template <class T>
inline void pack_columns(const T* const* rows, int columns, int64_t dim, float* panel) {
  for (int c0 = 0; c0 < kPanelCols; c0 += kLanes)
    for (int64_t d = 0; d < dim; d += kLanes) {
      f32v tile[kLanes];
      load_columns(rows + c0, columns - c0, d, dim, tile);
      for (int i = 0; i < kLanes && d + i < dim; ++i)
        store(panel + (d + i) * kPanelCols + c0, tile[i]);
    }
}

// Σ_d a[c][d] · b[c][d] in lane c, for up to a vector of tokens: each with its own one, bit for bit
// what `meet` gives them.
template <class T>
inline f32v meet_own(const T* const* a, const T* const* b, int tokens, int64_t dim) {
  f32v total = broadcast(0.0f);
  for (int64_t first = 0; first < dim; first += kChain) {
    const int64_t end = dim - first < kChain ? dim : first + kChain;
    f32v sum = broadcast(0.0f);
    for (int64_t d = first; d < end; d += kLanes) {
      f32v x[kLanes], y[kLanes];
      load_columns(a, tokens, d, dim, x);
      load_columns(b, tokens, d, dim, y);
      for (int i = 0; i < kLanes; ++i) sum += x[i] * y[i];
    }
    total += sum;
  }
  return total;
}

// rows[c][d] = panel[d][c] · factor[c]
template <class T>
inline void unpack_columns(const float* panel, int columns, int64_t dim, const float* factor,
                           T* const* rows) {
  for (int c0 = 0; c0 < columns; c0 += kLanes) {
    const f32v scale = load(factor + c0);
    for (int64_t d = 0; d < dim; d += kLanes) {
      f32v tile[kLanes];
      for (int i = 0; i < kLanes; ++i)
        tile[i] = d + i < dim ? load(panel + (d + i) * kPanelCols + c0) * scale : broadcast(0.0f);
      transpose(tile);
      for (int c = 0; c < kLanes && c0 + c < columns; ++c)
        store_some(rows[c0 + c] + d, tile[c], dim - d);
    }
  }
}

}  // namespace lanewise::LANEWISE_TARGET
