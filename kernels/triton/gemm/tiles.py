"""Which tile each architecture gives each matrix product."""

from __future__ import annotations

from dataclasses import dataclass

from .. import target


@dataclass(frozen=True)
class Tile:
    """One tiling: output rows and columns per program, warps, and the tiles of K in flight."""

    m: int
    n: int
    warps: int
    stages: int


# Per architecture and bytes of an element: tiles for a large product, for one too small to give
# every unit a large tile, and for few rows (decoding), where the weight streams past once and only
# its bytes count.
TILES: dict[str, dict[int, dict[str, Tile]]] = {
    "sm_80": {
        2: {"large": Tile(128, 128, 8, 3), "small": Tile(64, 64, 4, 4), "few": Tile(16, 64, 4, 4)},
        4: {"large": Tile(128, 64, 8, 3), "small": Tile(64, 64, 8, 3), "few": Tile(16, 64, 4, 4)},
    },
    "sm_90": {
        2: {"large": Tile(128, 128, 8, 4), "small": Tile(64, 64, 4, 4), "few": Tile(16, 64, 4, 5)},
        4: {"large": Tile(128, 64, 8, 3), "small": Tile(64, 64, 8, 3), "few": Tile(16, 64, 4, 4)},
    },
    "sm_100": {
        2: {"large": Tile(128, 128, 8, 4), "small": Tile(64, 64, 4, 4), "few": Tile(16, 64, 4, 5)},
        4: {"large": Tile(128, 64, 8, 3), "small": Tile(64, 64, 8, 3), "few": Tile(16, 64, 4, 4)},
    },
    "gfx942": {
        2: {"large": Tile(128, 128, 4, 2), "small": Tile(64, 64, 4, 2), "few": Tile(16, 64, 4, 2)},
        4: {"large": Tile(128, 128, 4, 2), "small": Tile(64, 64, 4, 2), "few": Tile(16, 64, 4, 2)},
    },
}
FEW_ROWS = 32
GROUP_M = 8
TILE_K_BYTES = 128  # one row of a tile of x or of the weight: a cache line, 64 elements of 16 bits


def choose(rows: int, columns: int, itemsize: int, architecture: target.Architecture) -> Tile:
    tiles = TILES[architecture.name][itemsize]
    if rows <= FEW_ROWS:
        return tiles["few"]
    large = tiles["large"]
    programs = target.divide_up(rows, large.m) * target.divide_up(columns, large.n)
    return large if programs >= architecture.units else tiles["small"]
