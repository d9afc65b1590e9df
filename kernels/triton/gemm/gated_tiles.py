"""Which tile each architecture gives a gated product, which keeps two tiles of sums."""

from __future__ import annotations

from ..table import Table
from ..target import Architecture, divide_up
from .tiles import FEW_ROWS, Tile

# Per class of problem and bits of an element, as for plain products. Two accumulators take the
# registers of one twice as wide.
GATED = Table(
    "gated_product",
    {
        "sm_80": {
            "large 16": Tile(128, 64, 8, 3),
            "large 32": Tile(64, 64, 8, 3),
            "small 16": Tile(64, 64, 8, 3),
            "small 32": Tile(64, 32, 8, 3),
            "few 16": Tile(32, 32, 4, 4),
            "few 32": Tile(32, 32, 4, 4),
        },
        "sm_90": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 32, 4, 4),
            "few 16": Tile(32, 32, 4, 6),
            "few 32": Tile(32, 32, 4, 5),
        },
        "sm_100": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 32, 4, 4),
            "few 16": Tile(32, 32, 4, 6),
            "few 32": Tile(32, 32, 4, 5),
        },
        "gfx942": {
            "large 16": Tile(128, 64, 4, 2),
            "large 32": Tile(128, 64, 4, 2),
            "small 16": Tile(64, 64, 4, 2),
            "small 32": Tile(64, 32, 4, 2),
            "few 16": Tile(32, 32, 4, 2),
            "few 32": Tile(32, 32, 4, 2),
        },
    },
)


def choose(rows: int, columns: int, itemsize: int, architecture: Architecture) -> Tile:
    bits = 8 * itemsize
    if rows <= FEW_ROWS:
        return GATED.choose(architecture, f"few {bits}")
    large = GATED.shipped(architecture, f"large {bits}")
    programs = divide_up(rows, large.m) * divide_up(columns, large.n)
    kind = "large" if programs >= architecture.units else "small"
    return GATED.choose(architecture, f"{kind} {bits}")
