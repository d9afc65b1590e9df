"""Which tile each architecture gives each problem of attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Rows of queries, keys at a time, warps, tiles of keys and values in flight, and the slice of
    the head size that one product takes."""

    m: int
    n: int
    warps: int
    stages: int
    d: int = 512


# Per architecture, bytes of an element and padded head size: tiles for bare scores, for scores that
# a softcap, slopes or a bias change (which live in registers beside the product), and for few
# queries (decoding). Each is the largest tried that compiles without a spill with every option on.
TILES: dict[str, dict[int, dict[int, dict[str, Tile]]]] = {
    "sm_80": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 32, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(64, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 64, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 64),
                "scored": Tile(64, 16, 8, 2, 128),
                "few": Tile(16, 32, 8, 2),
            },
        },
        4: {
            64: {
                "bare": Tile(64, 16, 8, 2),
                "scored": Tile(64, 16, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(32, 32, 8, 2),
                "scored": Tile(32, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(32, 32, 8, 2, 32),
                "scored": Tile(32, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(32, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "sm_90": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 128),
                "scored": Tile(64, 32, 8, 2, 64),
                "few": Tile(16, 32, 8, 2),
            },
        },
        4: {
            64: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(128, 32, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(32, 32, 8, 2),
                "scored": Tile(32, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(32, 32, 8, 2, 32),
                "scored": Tile(32, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(16, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "sm_100": {
        2: {
            64: {
                "bare": Tile(128, 128, 8, 2),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 128, 4, 3),
            },
            128: {
                "bare": Tile(128, 64, 8, 3),
                "scored": Tile(128, 64, 8, 3),
                "few": Tile(16, 64, 4, 3),
            },
            256: {
                "bare": Tile(128, 32, 8, 2),
                "scored": Tile(64, 32, 8, 2),
                "few": Tile(16, 32, 4, 2),
            },
            512: {
                "bare": Tile(64, 32, 8, 2, 64),
                "scored": Tile(64, 32, 8, 2, 64),
                "few": Tile(16, 32, 8, 2, 128),
            },
        },
        4: {
            64: {
                "bare": Tile(64, 16, 8, 2),
                "scored": Tile(64, 16, 8, 2),
                "few": Tile(16, 64, 4, 3),
            },
            128: {
                "bare": Tile(64, 32, 8, 2, 32),
                "scored": Tile(64, 32, 8, 2, 32),
                "few": Tile(16, 32, 4, 2),
            },
            256: {
                "bare": Tile(64, 32, 8, 2, 32),
                "scored": Tile(64, 32, 8, 2, 32),
                "few": Tile(16, 32, 8, 2, 64),
            },
            512: {
                "bare": Tile(16, 16, 8, 2, 64),
                "scored": Tile(16, 16, 8, 2, 64),
                "few": Tile(16, 16, 8, 2, 64),
            },
        },
    },
    "gfx942": {
        2: {
            64: {
                "bare": Tile(128, 64, 4, 1),
                "scored": Tile(128, 32, 4, 1),
                "few": Tile(16, 64, 4, 1),
            },
            128: {
                "bare": Tile(128, 32, 4, 1),
                "scored": Tile(64, 32, 4, 1),
                "few": Tile(16, 32, 4, 1),
            },
            256: {
                "bare": Tile(64, 16, 4, 1),
                "scored": Tile(64, 16, 4, 1),
                "few": Tile(16, 32, 4, 1, 64),
            },
            512: {
                "bare": Tile(64, 16, 8, 1, 64),
                "scored": Tile(64, 16, 8, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
        },
        4: {
            64: {
                "bare": Tile(128, 32, 4, 1),
                "scored": Tile(128, 32, 4, 1),
                "few": Tile(16, 64, 4, 1),
            },
            128: {
                "bare": Tile(64, 32, 4, 1),
                "scored": Tile(64, 16, 4, 1),
                "few": Tile(16, 32, 4, 1),
            },
            256: {
                "bare": Tile(64, 16, 4, 1, 64),
                "scored": Tile(64, 16, 4, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
            512: {
                "bare": Tile(64, 16, 8, 1, 64),
                "scored": Tile(64, 16, 8, 1, 64),
                "few": Tile(16, 32, 4, 1, 64),
            },
        },
    },
}
