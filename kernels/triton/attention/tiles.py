"""Which tile each architecture gives each problem of attention."""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Tile:
    """Rows of queries, keys at a time, warps, tiles of keys and values in flight, the slice of the
    head size that one product takes, and whether few queries of the heads that share keys are
    packed into the rows of one tile, which keeps offsets in registers."""

    m: int
    n: int
    warps: int
    stages: int
    d: int = 512
    packs: bool = True


@dataclass(frozen=True)
class Pieces:
    """Pieces of a row that are joined at a time."""

    s: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class Rows:
    """Rows that are copied at a time."""

    r: int
    warps: int
    stages: int = 1


# Of NVIDIA, for rows that start anywhere, which spill what fits below: one tile for scores of any
# kind, padded, packed or over pages, that does not spill on any of the three. Heads are multiplied
# in slices, so that addresses of few elements are alive at once. AMD's registers hold all.
_UNALIGNED = {
    "unaligned 16 64": Tile(64, 32, 8, 2),
    "unaligned 16 128": Tile(32, 32, 8, 2, 32),
    "unaligned 16 256": Tile(16, 16, 8, 2, 64),
    "unaligned 16 512": Tile(16, 16, 8, 2, 16),
    "unaligned 32 64": Tile(32, 16, 8, 2),
    "unaligned 32 128": Tile(16, 16, 8, 2, 32),
    "unaligned 32 256": Tile(16, 16, 8, 2, 16),
    "unaligned 32 512": Tile(16, 8, 8, 2, 32),
    "unaligned few 16 64": Tile(16, 64, 8, 2),
    "unaligned few 16 128": Tile(16, 32, 8, 2),
    "unaligned few 16 256": Tile(16, 16, 8, 2, packs=False),
    "unaligned few 16 512": Tile(16, 16, 8, 2, 16, packs=False),
    "unaligned few 32 64": Tile(16, 32, 8, 2),
    "unaligned few 32 128": Tile(16, 16, 8, 2, 32),
    "unaligned few 32 256": Tile(16, 16, 8, 2, 16, packs=False),
    "unaligned few 32 512": Tile(16, 8, 8, 2, 32, packs=False),
}

# Per class of problem (scores, bits of an element, padded head size): tiles for bare scores, for
# scores that a softcap, slopes or a bias change (which live in registers beside the product), for
# few queries (decoding, split or not), and for both of these over pages, where each key's row may
# lie anywhere. Each is the largest tried that compiles without a spill with every option on, of
# padded sequences and of packed ones.
FORWARD = Table(
    "attention_forward",
    {
        "sm_80": {
            "bare 16 64": Tile(128, 128, 8, 2),
            "bare 16 128": Tile(128, 64, 8, 3),
            "bare 16 256": Tile(64, 32, 8, 2),
            "bare 16 512": Tile(32, 32, 8, 2, 128),
            "bare 32 64": Tile(64, 16, 8, 2),
            "bare 32 128": Tile(32, 32, 8, 2),
            "bare 32 256": Tile(32, 32, 8, 2, 32),
            "bare 32 512": Tile(16, 16, 8, 2, 64),
            "scored 16 64": Tile(128, 64, 8, 3),
            "scored 16 128": Tile(128, 32, 8, 3),
            "scored 16 256": Tile(64, 32, 8, 2),
            "scored 16 512": Tile(32, 32, 8, 2, 128),
            "scored 32 64": Tile(64, 16, 8, 2),
            "scored 32 128": Tile(32, 32, 8, 2),
            "scored 32 256": Tile(32, 32, 8, 2, 32),
            "scored 32 512": Tile(16, 16, 8, 2, 64),
            "few 16 64": Tile(16, 128, 4, 3),
            "few 16 128": Tile(16, 64, 4, 3),
            "few 16 256": Tile(16, 64, 4, 2),
            "few 16 512": Tile(16, 32, 8, 2),
            "few 32 64": Tile(16, 64, 4, 3),
            "few 32 128": Tile(16, 32, 4, 2),
            "few 32 256": Tile(16, 32, 8, 2, 64),
            "few 32 512": Tile(16, 16, 8, 2, 32),
            "paged 16 64": Tile(128, 64, 8, 3),
            "paged 16 128": Tile(128, 32, 8, 3),
            "paged 16 256": Tile(64, 32, 8, 2),
            "paged 16 512": Tile(32, 32, 8, 2, 128),
            "paged 32 64": Tile(64, 16, 8, 2),
            "paged 32 128": Tile(32, 32, 8, 2, 32),
            "paged 32 256": Tile(16, 32, 8, 2, 32),
            "paged 32 512": Tile(16, 16, 8, 2, 32),
            "paged few 16 64": Tile(16, 128, 4, 3),
            "paged few 16 128": Tile(16, 64, 4, 3),
            "paged few 16 256": Tile(16, 32, 4, 2),
            "paged few 16 512": Tile(16, 32, 8, 2),
            "paged few 32 64": Tile(16, 64, 4, 3),
            "paged few 32 128": Tile(16, 32, 4, 2),
            "paged few 32 256": Tile(16, 32, 8, 2, 64),
            "paged few 32 512": Tile(16, 16, 8, 2, 64),
            **_UNALIGNED,
        },
        "sm_90": {
            "bare 16 64": Tile(128, 128, 8, 2),
            "bare 16 128": Tile(128, 64, 8, 3),
            "bare 16 256": Tile(128, 32, 8, 2),
            "bare 16 512": Tile(64, 32, 8, 2, 64),
            "bare 32 64": Tile(128, 32, 8, 2),
            "bare 32 128": Tile(32, 32, 8, 2),
            "bare 32 256": Tile(32, 32, 8, 2, 32),
            "bare 32 512": Tile(16, 16, 8, 2, 64),
            "scored 16 64": Tile(128, 64, 8, 3),
            "scored 16 128": Tile(128, 64, 8, 2),
            "scored 16 256": Tile(64, 32, 8, 2),
            "scored 16 512": Tile(64, 16, 8, 2, 32),
            "scored 32 64": Tile(128, 32, 8, 2),
            "scored 32 128": Tile(32, 32, 8, 2),
            "scored 32 256": Tile(32, 32, 8, 2, 32),
            "scored 32 512": Tile(16, 16, 8, 2, 64),
            "few 16 64": Tile(16, 128, 4, 3),
            "few 16 128": Tile(16, 64, 4, 3),
            "few 16 256": Tile(16, 32, 4, 2),
            "few 16 512": Tile(16, 32, 8, 2),
            "few 32 64": Tile(16, 64, 4, 3),
            "few 32 128": Tile(16, 32, 4, 2),
            "few 32 256": Tile(16, 32, 8, 2, 64),
            "few 32 512": Tile(16, 16, 8, 2, 32),
            "paged 16 64": Tile(128, 64, 8, 3),
            "paged 16 128": Tile(128, 64, 8, 3),
            "paged 16 256": Tile(64, 32, 8, 2),
            "paged 16 512": Tile(32, 32, 8, 2, 128),
            "paged 32 64": Tile(128, 32, 8, 2),
            "paged 32 128": Tile(32, 32, 8, 2, 32),
            "paged 32 256": Tile(16, 32, 8, 2, 32),
            "paged 32 512": Tile(16, 16, 8, 2, 64),
            "paged few 16 64": Tile(16, 128, 4, 3),
            "paged few 16 128": Tile(16, 64, 4, 3),
            "paged few 16 256": Tile(16, 32, 4, 2),
            "paged few 16 512": Tile(16, 32, 8, 2),
            "paged few 32 64": Tile(16, 64, 4, 3),
            "paged few 32 128": Tile(16, 32, 4, 2),
            "paged few 32 256": Tile(16, 32, 8, 2, 64),
            "paged few 32 512": Tile(16, 16, 8, 3, 64),
            **_UNALIGNED,
        },
        "sm_100": {
            "bare 16 64": Tile(128, 128, 8, 2),
            "bare 16 128": Tile(128, 64, 8, 3),
            "bare 16 256": Tile(64, 32, 8, 2),
            "bare 16 512": Tile(64, 32, 8, 2, 64),
            "bare 32 64": Tile(64, 16, 8, 2),
            "bare 32 128": Tile(64, 32, 8, 2, 32),
            "bare 32 256": Tile(64, 32, 8, 2, 32),
            "bare 32 512": Tile(16, 16, 8, 2, 64),
            "scored 16 64": Tile(128, 64, 8, 3),
            "scored 16 128": Tile(128, 64, 8, 3),
            "scored 16 256": Tile(64, 32, 8, 2),
            "scored 16 512": Tile(64, 32, 8, 2, 64),
            "scored 32 64": Tile(64, 16, 8, 2),
            "scored 32 128": Tile(64, 32, 8, 2, 32),
            "scored 32 256": Tile(64, 32, 8, 2, 32),
            "scored 32 512": Tile(16, 16, 8, 2, 64),
            "few 16 64": Tile(16, 128, 4, 3),
            "few 16 128": Tile(16, 64, 4, 3),
            "few 16 256": Tile(16, 32, 4, 2),
            "few 16 512": Tile(16, 32, 8, 2, 128),
            "few 32 64": Tile(16, 64, 4, 3),
            "few 32 128": Tile(16, 32, 4, 2),
            "few 32 256": Tile(16, 32, 8, 2, 64),
            "few 32 512": Tile(16, 16, 8, 2, 32),
            "paged 16 64": Tile(128, 64, 8, 3),
            "paged 16 128": Tile(128, 32, 8, 3),
            "paged 16 256": Tile(64, 32, 8, 2),
            "paged 16 512": Tile(64, 32, 8, 2, 64),
            "paged 32 64": Tile(64, 16, 8, 2),
            "paged 32 128": Tile(64, 32, 8, 2, 32),
            "paged 32 256": Tile(64, 32, 8, 2, 32),
            "paged 32 512": Tile(16, 16, 8, 2, 64),
            "paged few 16 64": Tile(16, 128, 4, 3),
            "paged few 16 128": Tile(16, 64, 4, 3),
            "paged few 16 256": Tile(16, 32, 4, 2),
            "paged few 16 512": Tile(16, 32, 8, 2, 128),
            "paged few 32 64": Tile(16, 64, 4, 3),
            "paged few 32 128": Tile(16, 32, 4, 2),
            "paged few 32 256": Tile(16, 32, 8, 2, 64),
            "paged few 32 512": Tile(16, 16, 8, 3, 64),
            **_UNALIGNED,
        },
        "gfx942": {
            "bare 16 64": Tile(128, 64, 4, 1),
            "bare 16 128": Tile(128, 32, 4, 1),
            "bare 16 256": Tile(64, 16, 4, 1),
            "bare 16 512": Tile(64, 16, 8, 1, 64),
            "bare 32 64": Tile(128, 32, 4, 1),
            "bare 32 128": Tile(64, 32, 4, 1),
            "bare 32 256": Tile(64, 16, 4, 1, 64),
            "bare 32 512": Tile(64, 16, 8, 1, 64),
            "scored 16 64": Tile(128, 32, 4, 1),
            "scored 16 128": Tile(64, 32, 4, 1),
            "scored 16 256": Tile(64, 16, 4, 1),
            "scored 16 512": Tile(64, 16, 8, 1, 64),
            "scored 32 64": Tile(128, 32, 4, 1),
            "scored 32 128": Tile(64, 16, 4, 1),
            "scored 32 256": Tile(64, 16, 4, 1, 64),
            "scored 32 512": Tile(64, 16, 8, 1, 64),
            "few 16 64": Tile(16, 64, 4, 1),
            "few 16 128": Tile(16, 32, 4, 1),
            "few 16 256": Tile(16, 32, 4, 1, 64),
            "few 16 512": Tile(16, 32, 4, 1, 64),
            "few 32 64": Tile(16, 64, 4, 1),
            "few 32 128": Tile(16, 32, 4, 1),
            "few 32 256": Tile(16, 32, 4, 1, 64),
            "few 32 512": Tile(16, 32, 4, 1, 64),
            "paged 16 64": Tile(128, 32, 4, 1),
            "paged 16 128": Tile(64, 32, 4, 1),
            "paged 16 256": Tile(64, 16, 4, 1),
            "paged 16 512": Tile(64, 16, 8, 1, 64),
            "paged 32 64": Tile(128, 32, 4, 1),
            "paged 32 128": Tile(64, 16, 4, 1),
            "paged 32 256": Tile(64, 16, 4, 1, 64),
            "paged 32 512": Tile(64, 16, 8, 1, 64),
            "paged few 16 64": Tile(16, 64, 4, 1),
            "paged few 16 128": Tile(16, 32, 4, 1),
            "paged few 16 256": Tile(16, 32, 4, 1, 64),
            "paged few 16 512": Tile(16, 32, 4, 1, 64),
            "paged few 32 64": Tile(16, 64, 4, 1),
            "paged few 32 128": Tile(16, 32, 4, 1),
            "paged few 32 256": Tile(16, 32, 4, 1, 64),
            "paged few 32 512": Tile(16, 32, 4, 1, 64),
        },
        # Where gfx942's tile spills.
        "gfx950": {"bare 16 512": Tile(64, 16, 8, 1, 128)},
    },
)
FEW_QUERIES = 16

# Per padded head size: all that a thread has in flight fits its registers.
_MERGE = {"64": Pieces(16, 4), "128": Pieces(16, 4), "256": Pieces(16, 4), "512": Pieces(16, 8)}
MERGE = Table("attention_merge", dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), _MERGE))

_WRITE = {"rows": Rows(16, 4)}
WRITE = Table("paged_cache_write", dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), _WRITE))
