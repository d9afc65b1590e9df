"""Which tile each architecture gives a gated product, which keeps two tiles of sums."""

from __future__ import annotations

from ..table import Table
from .tiles import PersistentTile, Tables, Tile

# Of NVIDIA, where operands that are read element by element spill what fits below.
_UNALIGNED = {
    "unaligned large 16": Tile(128, 32, 8, 3),
    "unaligned small 16": Tile(64, 64, 8, 3),
}

# Per class of problem and bits of an element, as for plain products. Two accumulators take the
# registers of one twice as wide; where descriptors serve most large products, what is left here has
# rows that start anywhere, whose offsets take registers too.
TILED = Table(
    "tiled_gated_product",
    {
        "sm_80": {
            "large 16": Tile(128, 64, 8, 3),
            "large 32": Tile(128, 32, 8, 3),
            "small 16": Tile(64, 64, 4, 3),
            "small 32": Tile(64, 32, 8, 3),
            "few 16": Tile(32, 32, 4, 4),
            "few 32": Tile(32, 32, 4, 4),
            **_UNALIGNED,
        },
        "sm_90": {
            "large 16": Tile(128, 64, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 32, 4, 4),
            "few 16": Tile(32, 32, 4, 6),
            "few 32": Tile(32, 32, 4, 5),
            **_UNALIGNED,
        },
        "sm_100": {
            "large 16": Tile(128, 64, 8, 4),
            "large 32": Tile(128, 64, 8, 3),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 32, 4, 4),
            "few 16": Tile(32, 32, 4, 6),
            "few 32": Tile(32, 32, 4, 5),
            **_UNALIGNED,
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
# Aligned operands of 16 bits on GPUs with tensor memory accelerators. Both accumulators of the
# large tile take what one of a plain product does: registers on sm_90, all tensor memory on sm_100,
# where those of the next tile fill while the last are finished. Four stages and parts of output and
# sums take 216 of 227 KB; half the tile serves products whose large tiles would leave more idle.
PERSISTENT = Table(
    "persistent_gated_product",
    {
        "sm_90": {
            "large": PersistentTile(128, 128, 8, 4),
            "medium": PersistentTile(128, 64, 8, 4),
        },
        "sm_100": {
            "large": PersistentTile(128, 128, 8, 4, specialized=True),
            "medium": PersistentTile(128, 64, 8, 4, specialized=True),
        },
    },
)
GATED = Tables(TILED, PERSISTENT, weights=2)

# As of the sums of plain products.
SUM = Table(
    "sum_of_gated_chunks",
    {
        "sm_80": {"any": Tile(2, 512, 4, 4)},
        "sm_90": {"any": Tile(2, 512, 4, 4)},
        "sm_100": {"any": Tile(2, 512, 4, 4)},
        "gfx942": {"any": Tile(2, 512, 2, 4)},  # its warps are twice as wide
    },
)
