// What the target `amx` multiplies of bfloat16: in tiles.
#include "simd/amx.h"

#include "dispatch/parallel.h"
#include "probe/kernel.h"

namespace lanewise::LANEWISE_TARGET {

// Six chains in tiles of sums; two tiles of operands, which stay.
int64_t pair_round_flops() { return 6 * 2 * kAmxRows * kAmxRows * kAmxDepth; }

void pair_probe(const FmaProbe& p) {
  parallel(p.threads, [&](int thread, int) {
    const TileRegisters tiles(kAmxRows);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < p.rounds; ++i) {
      _tile_dpbf16ps(0, 6, 7);
      _tile_dpbf16ps(1, 6, 7);
      _tile_dpbf16ps(2, 6, 7);
      _tile_dpbf16ps(3, 6, 7);
      _tile_dpbf16ps(4, 6, 7);
      _tile_dpbf16ps(5, 6, 7);
    }
    alignas(64) float sums[kAmxRows * kAmxRows];
    _tile_stored(0, sums, kAmxRowBytes);
    p.sink[thread] = sums[0];
  });
}

}  // namespace lanewise::LANEWISE_TARGET
