"""Which tile each architecture gives each rotation."""

from __future__ import annotations

from dataclasses import dataclass

from .. import target
from ..table import Table


@dataclass(frozen=True)
class Tile:
    """One tiling: rows, which are heads of a position, and pairs per step; warps; stages."""

    rows: int
    pairs: int
    warps: int
    stages: int = 1


# Per pairs of a head, up to a power of two, and bits of an element: a thread takes 16 bytes of each
# half of one row. Rows are few, so that decoding, which has only its heads, meets many programs.
_NVIDIA = {
    "32 16": Tile(16, 32, 2),
    "32 32": Tile(8, 32, 2),
    "64 16": Tile(16, 64, 4),
    "64 32": Tile(8, 64, 4),
    "128 16": Tile(8, 128, 4),
    "128 32": Tile(4, 128, 4),
}
ROTATE = Table(
    "rotate",
    {
        "sm_80": _NVIDIA,
        "sm_90": _NVIDIA,
        "sm_100": _NVIDIA,
        # A warp has 64 threads.
        "gfx942": {
            "32 16": Tile(16, 32, 1),
            "32 32": Tile(8, 32, 1),
            "64 16": Tile(16, 64, 2),
            "64 32": Tile(8, 64, 2),
            "128 16": Tile(8, 128, 2),
            "128 32": Tile(4, 128, 2),
        },
    },
)


def choose(pairs: int, itemsize: int, architecture: target.Architecture) -> Tile:
    """More pairs than a tile's are taken in several steps."""
    width = 32 if pairs <= 32 else 64 if pairs <= 64 else 128
    return ROTATE.choose(architecture, f"{width} {8 * itemsize}")
