"""Tiles of the kernels around packed weights, which only move memory."""

from __future__ import annotations

from ..table import Table
from .tiles import Tile

# A tile of the weight, square in cache lines of 16 bits, so that either of its layouts is read in
# whole lines.
PACK = Table(
    "pack_rows",
    {
        "sm_80": {"any": Tile(64, 64, 4, 1)},
        "sm_90": {"any": Tile(64, 64, 4, 1)},
        "sm_100": {"any": Tile(64, 64, 4, 1)},
        "gfx942": {"any": Tile(64, 64, 4, 1)},
    },
)
# Bound by its launch: as few programs as fill 16 bytes a thread.
GUARD = Table(
    "guarded_bias",
    {
        "sm_80": {"any": Tile(1, 512, 4, 1)},
        "sm_90": {"any": Tile(1, 512, 4, 1)},
        "sm_100": {"any": Tile(1, 512, 4, 1)},
        "gfx942": {"any": Tile(1, 512, 2, 1)},  # its warps are twice as wide
    },
)
