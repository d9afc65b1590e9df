// The AMX tile: 2 × 2 tiles of C, 32 × 32 sums, held in tile registers while k runs.
//
// Budget, 8 tile registers of 16 rows × 64 bytes: 4 of sums, 2 of rows, 2 of pairs. A step of 32 k
// loads 4 tiles, 4 KiB, and multiplies 4 times, 16 cycles each. L1 gives a tile in 8 cycles, L2 in
// some 21: if the pairs stay in L1 the multiplier binds, if all comes from L2 the loads do.
#pragma once

#include "gemm/tile.h"
#include "simd/amx.h"

namespace lanewise::LANEWISE_TARGET {

// Two tiles' rows, contiguous in k; the rest of k, padded with zeros, lies apart where there is
// one.
struct AmxRows {
  const char *tile[2], *rest[2];
  int64_t stride, rest_stride, step;  // bytes between rows, and from one step to the next
};

// A panel of pairs [k / 2][width].
struct AmxPairs {
  const char *data, *rest;
  int64_t stride;  // bytes of a pair of k: four times the width
};

template <int ROWS, int COLS>
LANEWISE_INLINE void amx_step(const char* const (&rows)[2], int64_t row_stride, const char* pairs,
                              int64_t pair_stride) {
  _tile_loadd(6, pairs, pair_stride);
  _tile_loadd(4, rows[0], row_stride);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (COLS == 2) {
    _tile_loadd(7, pairs + kAmxRowBytes, pair_stride);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (ROWS == 2) {
    _tile_loadd(5, rows[1], row_stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (COLS == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

LANEWISE_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The tile instructions do not tell the compiler that they read and write memory: around them.
LANEWISE_INLINE void watch_memory() { __asm__ volatile("" ::: "memory"); }

// Loads or stores the tiles of sums, two beside each other and two from row `second` on.
template <int ROWS, int COLS>
LANEWISE_INLINE void load_sums(const float* sums, int64_t second) {
  constexpr int64_t kStride = kTileCols * sizeof(float);
  const float* below = sums + second * kTileCols;
  _tile_loadd(0, sums, kStride);
  if constexpr (COLS == 2) _tile_loadd(1, sums + kAmxRows, kStride);
  if constexpr (ROWS == 2) _tile_loadd(2, below, kStride);
  if constexpr (ROWS == 2 && COLS == 2) _tile_loadd(3, below + kAmxRows, kStride);
}
template <int ROWS, int COLS>
LANEWISE_INLINE void store_sums(float* sums, int64_t second) {
  constexpr int64_t kStride = kTileCols * sizeof(float);
  float* below = sums + second * kTileCols;
  _tile_stored(0, sums, kStride);
  if constexpr (COLS == 2) _tile_stored(1, sums + kAmxRows, kStride);
  if constexpr (ROWS == 2) _tile_stored(2, below, kStride);
  if constexpr (ROWS == 2 && COLS == 2) _tile_stored(3, below + kAmxRows, kStride);
}

// sums[r · kTileCols + c] = (resume ? sums : 0) + the products over `steps` steps of k, and over
// the rest where `rest`; those of the second tile begin in row `second`.
template <int ROWS, int COLS>
void amx_tile(int64_t steps, bool rest, const AmxRows& rows, const AmxPairs& pairs,
              Upcoming& upcoming, bool resume, float* sums, int64_t second) {
  watch_memory();
  if (resume) {
    load_sums<ROWS, COLS>(sums, second);
  } else {
    zero_sums();
  }
  const char* at[2] = {rows.tile[0], rows.tile[1]};
  const char* pair = pairs.data;
  for (int64_t i = 0; i < steps; ++i) {
    upcoming.fetch();
    amx_step<ROWS, COLS>(at, rows.stride, pair, pairs.stride);
    at[0] += rows.step;
    at[1] += rows.step;
    pair += pairs.stride * (kAmxDepth / 2);
  }
  if (rest) amx_step<ROWS, COLS>(rows.rest, rows.rest_stride, pairs.rest, pairs.stride);
  store_sums<ROWS, COLS>(sums, second);
}

}  // namespace lanewise::LANEWISE_TARGET
