"""Which tile each architecture gives the rows of each norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import target
from ..table import Table


@dataclass(frozen=True)
class Tile:
    """One tiling: rows and elements of a row in registers at once, warps, stages; `resident`
    programs per unit share rows whose sums each keeps."""

    rows: int
    n: int
    warps: int
    stages: int = 1
    resident: int = 2


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
# The gradient holds rows, their gradient and the sums of both: longer rows would not fit.
NARROWEST, WIDEST, WIDEST_BACKWARD = 128, 16384, 8192


def _backward(rows: dict[str, Tile]) -> dict[str, Tile]:
    """The forward tiles, as far as they go, with as many programs as keep a unit's warps busy."""
    return {
        problem: replace(tile, resident=max(2, 16 // tile.warps))
        for problem, tile in rows.items()
        if tile.n <= WIDEST_BACKWARD
    }


_BACKWARD, _BACKWARD_64 = _backward(_FORWARD), _backward(_FORWARD_64)
BACKWARD_ROWS = Table(
    "norm_backward_rows",
    {"sm_80": _BACKWARD, "sm_90": _BACKWARD, "sm_100": _BACKWARD, "gfx942": _BACKWARD_64},
)
BACKWARD_LONG_ROW = Table(
    "norm_backward_long_row",
    {
        "sm_80": {"long": Tile(1, 4096, 8)},
        "sm_90": {"long": Tile(1, 4096, 8)},
        "sm_100": {"long": Tile(1, 4096, 8)},
        "gfx942": {"long": Tile(1, 4096, 4)},
    },
)
# Of columns a cache line of 16-bit elements or two, so that many programs share the rows.
PARTIAL_SUMS = Table(
    "norm_partial_sums",
    {
        "sm_80": {"long": Tile(16, 128, 4, resident=4)},
        "sm_90": {"long": Tile(16, 128, 4, resident=4)},
        "sm_100": {"long": Tile(16, 128, 4, resident=4)},
        "gfx942": {"long": Tile(16, 128, 2, resident=4)},
    },
)
SUM_PARTIALS = Table(
    "sum_partials",
    {
        "sm_80": {"all": Tile(32, 64, 4)},
        "sm_90": {"all": Tile(32, 64, 4)},
        "sm_100": {"all": Tile(32, 64, 4)},
        "gfx942": {"all": Tile(32, 64, 4)},
    },
)


def width(columns: int) -> int:
    """The extent of a block that holds a row."""
    return max(NARROWEST, target.block(columns))


def forward(columns: int, architecture: target.Architecture) -> Tile | None:
    """None: the row is a long one."""
    wide = width(columns)
    return ROWS.choose(architecture, str(wide)) if wide <= WIDEST else None


def long_forward(architecture: target.Architecture) -> Tile:
    return LONG_ROW.choose(architecture, "long")


def backward(columns: int, architecture: target.Architecture) -> Tile:
    return BACKWARD_ROWS.choose(architecture, str(width(columns)))


def long_backward(architecture: target.Architecture) -> Tile:
    return BACKWARD_LONG_ROW.choose(architecture, "long")


def partial_sums(architecture: target.Architecture) -> Tile:
    return PARTIAL_SUMS.choose(architecture, "long")


def sum_of_partials(architecture: target.Architecture) -> Tile:
    return SUM_PARTIALS.choose(architecture, "all")


def rows_of_program(rows: int, block: int, programs: int) -> int:
    """How many rows, in whole blocks, each of at most so many programs takes."""
    return target.divide_up(target.divide_up(rows, block), programs) * block
