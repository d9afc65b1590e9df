"""Which tile each architecture gives each kernel of the gradients of attention."""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile of scores, warps, tiles in flight, the slice `d` of a head that
    one product takes, and the columns `c` of a gradient that one program owns."""

    m: int
    n: int
    warps: int
    stages: int
    d: int = 512
    c: int = 512


@dataclass(frozen=True)
class Rows:
    """Rows at a time, and warps; nothing is in flight but what the loop's unrolling asks for."""

    r: int
    warps: int
    stages: int = 2


SIZES = ("64", "128", "256", "512")
KINDS = [f"{kind} {size}" for kind in ("bare 16", "scored 16", "any 32") for size in SIZES]
KEYS = Table(
    "attention_backward_keys",
    {a: {k: Tile(64, 64, 8, 2) for k in KINDS} for a in ("sm_80", "sm_90", "sm_100", "gfx942")},
)
QUERIES = Table(
    "attention_backward_queries",
    {a: {k: Tile(64, 64, 8, 2) for k in KINDS} for a in ("sm_80", "sm_90", "sm_100", "gfx942")},
)
BIAS = Table(
    "attention_backward_bias",
    {
        a: {f"{bits}": Tile(64, 64, 4, 2, 64) for bits in (16, 32)}
        for a in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
)
ROWS = Table(
    "attention_backward_rows",
    {
        a: {size: Rows(8192 // int(size), 4) for size in SIZES}
        for a in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
)
SUMS = Table(
    "attention_backward_sums",
    {
        a: {"sinks": Rows(1024, 8), "chunks": Rows(256, 4)}
        for a in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
)

PROGRAMS = 4  # of a bias's gradient, on each unit
