"""Which tile each architecture gives the rows of each norm."""

from __future__ import annotations

from dataclasses import dataclass

from .. import target
from ..table import Table


@dataclass(frozen=True)
class Tile:
    """One tiling: rows per program, elements of a row in registers at once, warps, stages."""

    rows: int
    n: int
    warps: int
    stages: int = 1


# Per elements of a row, up to a power of two: a thread holds two vectors of 16 bytes of 16-bit
# elements, and a warp as many rows as that makes. Long rows are walked over by blocks.
_FORWARD = {
    "128": Tile(16, 128, 4),
    "256": Tile(8, 256, 4),
    "512": Tile(4, 512, 4),
    "1024": Tile(2, 1024, 4),
    "2048": Tile(1, 2048, 4),
    "4096": Tile(1, 4096, 8),
    "8192": Tile(1, 8192, 16),
    "16384": Tile(1, 16384, 16),  # four vectors: 32 warps would have half the registers
}
_FORWARD_64 = {  # a warp has 64 threads, and a program at most 16 warps
    "128": Tile(16, 128, 2),
    "256": Tile(8, 256, 2),
    "512": Tile(4, 512, 2),
    "1024": Tile(2, 1024, 2),
    "2048": Tile(1, 2048, 4),
    "4096": Tile(1, 4096, 4),
    "8192": Tile(1, 8192, 8),
    "16384": Tile(1, 16384, 16),
}
ROWS = Table(
    "norm_rows",
    {"sm_80": _FORWARD, "sm_90": _FORWARD, "sm_100": _FORWARD, "gfx942": _FORWARD_64},
)
LONG_ROW = Table(
    "norm_long_row",
    {
        "sm_80": {"long": Tile(1, 8192, 8)},  # ptxas spills at 4096, with registers left
        "sm_90": {"long": Tile(1, 4096, 8)},
        "sm_100": {"long": Tile(1, 4096, 8)},
        "gfx942": {"long": Tile(1, 4096, 4)},
    },
)
NARROWEST, WIDEST = 128, 16384


def width(columns: int) -> int:
    """The extent of a block that holds a row."""
    return max(NARROWEST, target.block(columns))


def forward(columns: int, architecture: target.Architecture) -> Tile | None:
    """None: the row is a long one."""
    wide = width(columns)
    return ROWS.choose(architecture, str(wide)) if wide <= WIDEST else None


def long_forward(architecture: target.Architecture) -> Tile:
    return LONG_ROW.choose(architecture, "long")
