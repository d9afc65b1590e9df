// The tile registers of AMX: 8, of 16 rows of 64 bytes.
#pragma once

#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

inline constexpr int kAmxRows = 16;   // at most, of a tile
inline constexpr int kAmxDepth = 32;  // of k in a tile
inline constexpr int64_t kAmxRowBytes = 64;

// The tile registers of this thread. They are released in the end: what is left in them would be
// saved and restored with every switch of threads.
class TileRegisters {
 public:
  // Tiles of sums and rows have `height` rows, tiles of pairs 16.
  explicit TileRegisters(int height) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = kAmxRowBytes;
      config.rows[t] = static_cast<uint8_t>(t < 6 ? height : kAmxRows);
    }
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace lanewise::LANEWISE_TARGET
