"""Which tile each architecture gives each matrix product."""

from __future__ import annotations

from dataclasses import dataclass

from .. import target
from ..table import Table


@dataclass(frozen=True)
class Tile:
    """One tiling: output rows and columns per program, warps, and the tiles of K in flight."""

    m: int
    n: int
    warps: int
    stages: int


# Per class of problem and bits of an element: tiles for a large product, for one too small to give
# every unit a large tile, and for few rows (decoding), where the weight streams past once and only
# its bytes count.
TILED = Table(
    "tiled_product",
    {
        "sm_80": {
            "large 16": Tile(128, 128, 8, 3),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(16, 64, 4, 4),
            "few 32": Tile(16, 64, 4, 4),
        },
        "sm_90": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(16, 64, 4, 5),
            "few 32": Tile(16, 64, 4, 4),
        },
        "sm_100": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(16, 64, 4, 5),
            "few 32": Tile(16, 64, 4, 4),
        },
        "gfx942": {
            "large 16": Tile(128, 128, 4, 2),
            "large 32": Tile(128, 128, 4, 2),
            "small 16": Tile(64, 64, 4, 2),
            "small 32": Tile(64, 64, 4, 2),
            "few 16": Tile(16, 64, 4, 2),
            "few 32": Tile(16, 64, 4, 2),
        },
    },
)
FEW_ROWS = 32
GROUP_M = 8
TILE_K_BYTES = 128  # one row of a tile of x or of the weight: a cache line, 64 elements of 16 bits


def choose(rows: int, columns: int, itemsize: int, architecture: target.Architecture) -> Tile:
    bits = 8 * itemsize
    if rows <= FEW_ROWS:
        return TILED.choose(architecture, f"few {bits}")
    large = TILED.shipped(architecture, f"large {bits}")
    programs = target.divide_up(rows, large.m) * target.divide_up(columns, large.n)
    kind = "large" if programs >= architecture.units else "small"
    return TILED.choose(architecture, f"{kind} {bits}")
