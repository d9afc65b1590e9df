"""Which tile each architecture gives each kernel of the gradients of attention.

Each is the largest tried that compiles without a spill with every option on: gradients, which a
program keeps in registers while it walks, and scores share what there is.
"""

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
    """Rows, or numbers, at a time, warps, and how many are in flight."""

    r: int
    warps: int
    stages: int = 2


# Of NVIDIA, per bits of an element, where rows that start anywhere spill what fits below: addresses
# of few elements are alive at once if every head is multiplied in slices and its gradient cut.
_UNALIGNED_KEYS = {
    "unaligned 16": Tile(16, 32, 8, 2, 16, 32),
    "unaligned 32": Tile(16, 32, 8, 2, 16, 64),
}
_UNALIGNED_QUERIES = {
    "unaligned 16": Tile(32, 32, 8, 2, 32, 64),
    "unaligned 32": Tile(32, 16, 8, 2, 16, 64),
}

# Per class of problem (scores, bits of an element, padded head size). Scores are bare, or changed
# by a softcap, slopes or a bias, which live in registers beside the products; float32, whose
# products are three on tensor cores, has one tile for both. On sm_90 and sm_100 128 keys are 64 for
# each of two groups of warps. Large heads are multiplied in slices, and their gradients cut.
KEYS = Table(
    "attention_backward_keys",
    {
        "sm_80": {
            "bare 16 64": Tile(64, 128, 8, 2),
            "bare 16 128": Tile(32, 64, 8, 2),
            "bare 16 256": Tile(16, 64, 8, 2, 64),
            "bare 16 512": Tile(32, 64, 8, 2, 64, 128),
            "scored 16 64": Tile(16, 64, 4, 2),
            "scored 16 128": Tile(32, 64, 8, 2),
            "scored 16 256": Tile(16, 64, 8, 2, 64, 128),
            "scored 16 512": Tile(16, 64, 8, 2, 64, 128),
            "any 32 64": Tile(16, 32, 8, 2, 32),
            "any 32 128": Tile(16, 32, 8, 2, 32, 64),
            "any 32 256": Tile(16, 32, 8, 2, 32, 64),
            "any 32 512": Tile(16, 32, 8, 2, 32, 64),
            **_UNALIGNED_KEYS,
        },
        "sm_90": {
            "bare 16 64": Tile(64, 128, 8, 2),
            "bare 16 128": Tile(32, 128, 8, 2),
            "bare 16 256": Tile(16, 64, 8, 2, 64),
            "bare 16 512": Tile(32, 64, 8, 2, 64, 128),
            "scored 16 64": Tile(32, 128, 8, 2),
            "scored 16 128": Tile(16, 64, 8, 2),
            "scored 16 256": Tile(32, 64, 8, 2, 64, 128),
            "scored 16 512": Tile(16, 64, 8, 2, 64, 128),
            "any 32 64": Tile(16, 32, 8, 2, 32),
            "any 32 128": Tile(16, 32, 8, 2, 32, 64),
            "any 32 256": Tile(16, 32, 8, 2, 32, 64),
            "any 32 512": Tile(16, 32, 8, 2, 32, 64),
            **_UNALIGNED_KEYS,
        },
        "sm_100": {
            "bare 16 64": Tile(64, 128, 8, 2),
            "bare 16 128": Tile(32, 128, 8, 2),
            "bare 16 256": Tile(32, 64, 8, 2, 64, 128),
            "bare 16 512": Tile(32, 64, 8, 2, 64, 128),
            "scored 16 64": Tile(32, 128, 8, 2),
            "scored 16 128": Tile(32, 64, 8, 2),
            "scored 16 256": Tile(32, 64, 8, 2, 64, 128),
            "scored 16 512": Tile(16, 64, 8, 2, 64, 128),
            "any 32 64": Tile(16, 32, 8, 2, 32),
            "any 32 128": Tile(16, 32, 8, 2, 32, 64),
            "any 32 256": Tile(16, 32, 8, 2, 32, 64),
            "any 32 512": Tile(16, 32, 8, 2, 32, 64),
            **_UNALIGNED_KEYS,
        },
        "gfx942": {
            "bare 16 64": Tile(64, 128, 4, 1),
            "bare 16 128": Tile(64, 64, 4, 1),
            "bare 16 256": Tile(32, 64, 4, 1, 64),
            "bare 16 512": Tile(32, 64, 4, 1, 64, 128),
            "scored 16 64": Tile(32, 64, 4, 1),
            "scored 16 128": Tile(32, 64, 4, 1),
            "scored 16 256": Tile(32, 32, 4, 1, 64, 128),
            "scored 16 512": Tile(16, 32, 4, 1, 64, 128),
            "any 32 64": Tile(32, 64, 4, 1),
            "any 32 128": Tile(32, 32, 4, 1),
            "any 32 256": Tile(32, 32, 4, 1, 32, 128),
            "any 32 512": Tile(32, 32, 4, 1, 32, 128),
        },
        "gfx950": {"any 32 128": Tile(32, 32, 4, 1, 32)},  # it spills where gfx942 does not
    },
)

# A program keeps one gradient, not two: its tiles are larger.
QUERIES = Table(
    "attention_backward_queries",
    {
        "sm_80": {
            "bare 16 64": Tile(128, 64, 8, 3),
            "bare 16 128": Tile(128, 64, 8, 2),
            "bare 16 256": Tile(64, 32, 8, 2, 64),
            "bare 16 512": Tile(64, 32, 8, 2, 64, 256),
            "scored 16 64": Tile(128, 64, 8, 2),
            "scored 16 128": Tile(64, 32, 8, 2),
            "scored 16 256": Tile(64, 16, 8, 2),
            "scored 16 512": Tile(64, 32, 8, 2, 64, 128),
            "any 32 64": Tile(32, 16, 8, 2, 32),
            "any 32 128": Tile(32, 16, 8, 2, 32),
            "any 32 256": Tile(32, 16, 8, 2, 32, 128),
            "any 32 512": Tile(32, 16, 8, 2, 32, 128),
            **_UNALIGNED_QUERIES,
        },
        "sm_90": {
            "bare 16 64": Tile(128, 64, 8, 3),
            "bare 16 128": Tile(128, 64, 8, 2),
            "bare 16 256": Tile(64, 32, 8, 2),
            "bare 16 512": Tile(64, 32, 8, 2, 64, 256),
            "scored 16 64": Tile(128, 64, 8, 2),
            "scored 16 128": Tile(128, 32, 8, 2),
            "scored 16 256": Tile(64, 16, 8, 2),
            "scored 16 512": Tile(64, 32, 8, 2, 64, 128),
            "any 32 64": Tile(32, 16, 8, 2, 32),
            "any 32 128": Tile(32, 16, 8, 2, 32),
            "any 32 256": Tile(32, 16, 8, 2, 32, 128),
            "any 32 512": Tile(32, 16, 8, 2, 32, 128),
            **_UNALIGNED_QUERIES,
            "unaligned 16": Tile(16, 32, 8, 2, 16, 64),
        },
        "sm_100": {
            "bare 16 64": Tile(64, 64, 4, 2),
            "bare 16 128": Tile(128, 64, 8, 2),
            "bare 16 256": Tile(64, 32, 8, 2),
            "bare 16 512": Tile(64, 32, 8, 2, 64, 256),
            "scored 16 64": Tile(128, 64, 8, 2),
            "scored 16 128": Tile(128, 32, 8, 2),
            "scored 16 256": Tile(64, 32, 8, 2),
            "scored 16 512": Tile(64, 32, 8, 2, 64, 128),
            "any 32 64": Tile(32, 16, 8, 2, 32),
            "any 32 128": Tile(32, 16, 8, 2, 32),
            "any 32 256": Tile(32, 16, 8, 2, 32, 128),
            "any 32 512": Tile(32, 16, 8, 2, 32, 128),
            **_UNALIGNED_QUERIES,
        },
        "gfx942": {
            "bare 16 64": Tile(128, 64, 4, 1),
            "bare 16 128": Tile(128, 32, 4, 1),
            "bare 16 256": Tile(64, 32, 4, 1, 64),
            "bare 16 512": Tile(64, 32, 4, 1, 64, 256),
            "scored 16 64": Tile(128, 32, 4, 1),
            "scored 16 128": Tile(64, 32, 4, 1),
            "scored 16 256": Tile(64, 32, 4, 1, 64),
            "scored 16 512": Tile(64, 32, 4, 1, 64, 256),
            "any 32 64": Tile(64, 32, 4, 1),
            "any 32 128": Tile(64, 32, 4, 1, 32),
            "any 32 256": Tile(64, 16, 4, 1, 32),
            "any 32 512": Tile(64, 16, 4, 1, 32, 256),
        },
    },
)

# Per bits of an element: whatever the head size, its products are taken in slices.
_BIAS = {
    "16": Tile(64, 64, 8, 2, 64),
    "32": Tile(32, 16, 8, 2, 32),
    "unaligned 16": Tile(32, 32, 8, 2, 32),
    "unaligned 32": Tile(32, 16, 8, 2, 16),
}
BIAS = Table(
    "attention_backward_bias",
    {
        "sm_80": _BIAS,
        "sm_90": _BIAS,
        "sm_100": _BIAS,
        "gfx942": {"16": Tile(64, 64, 4, 1, 64), "32": Tile(64, 32, 4, 1, 32)},
    },
)
PROGRAMS = 4  # of a bias's gradient, on each unit

# Per padded size of a value: 8192 elements, 64 for each of 128 threads, wherever they lie.
ROWS = Table(
    "attention_backward_rows",
    {
        architecture: {f"{size}": Rows(8192 // size, 4) for size in (64, 128, 256, 512)}
        for architecture in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
)

# Few programs of long sums (a head's sink), or many of short ones (an element of a bias).
SUMS = Table(
    "attention_backward_sums",
    {
        architecture: {"sinks": Rows(2048, 8), "chunks": Rows(256, 4)}
        for architecture in ("sm_80", "sm_90", "sm_100", "gfx942")
    },
)
