"""Which tile each architecture gives the kernels of gradients that are not products."""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Tile:
    """Rows and columns at a time, warps, and the tiles in flight."""

    m: int
    n: int
    warps: int
    stages: int


# Both read memory once and compute little: 16 bytes of 16 bits a thread, and enough in flight.
COLUMN_SUM = Table(
    "column_sum",
    {
        "sm_80": {"any": Tile(32, 64, 4, 3)},
        "sm_90": {"any": Tile(32, 64, 4, 4)},
        "sm_100": {"any": Tile(32, 64, 4, 4)},
        "gfx942": {"any": Tile(32, 64, 4, 2)},
    },
)
GATED_GRADIENT = Table(
    "gated_gradient",
    {
        "sm_80": {"any": Tile(8, 128, 4, 1)},
        "sm_90": {"any": Tile(8, 128, 4, 1)},
        "sm_100": {"any": Tile(8, 128, 4, 1)},
        "gfx942": {"any": Tile(16, 128, 4, 1)},
    },
)
