"""Which kernel, tile and number of chunks of K each architecture gives each matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..table import Table
from ..target import Architecture, block, divide_up


@dataclass(frozen=True)
class Tile:
    """One tiling: output rows (fewer where there are fewer) and columns per program, warps, and the
    tiles of K in flight."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class PersistentTile(Tile):
    """`specialized`: warps that copy, that multiply and that finish are different ones."""

    specialized: bool = False


# Of NVIDIA, where operands that are read element by element spill what fits below.
_UNALIGNED = {
    "unaligned large 16": Tile(128, 64, 8, 4),
    "unaligned large 32": Tile(128, 64, 8, 4),
    "unaligned derivative 32": Tile(64, 64, 8, 3),
}

# Operands of any layout, per class of problem and bits of an element: tiles for a large product,
# for one too small to give every unit a large tile, and for few rows (decoding), where the weight
# streams past once and only its bytes count. The derivative of an activation takes registers that a
# large tile of float32 may not have.
TILED = Table(
    "tiled_product",
    {
        "sm_80": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 64, 8, 4),
            "derivative 32": Tile(128, 64, 8, 4),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(32, 64, 4, 4),
            "few 32": Tile(32, 64, 4, 4),
            **_UNALIGNED,
        },
        "sm_90": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 128, 8, 4),
            "derivative 32": Tile(128, 64, 8, 4),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(32, 64, 4, 5),
            "few 32": Tile(32, 64, 4, 4),
            **_UNALIGNED,
            "unaligned large 16": Tile(64, 128, 8, 4),
        },
        "sm_100": {
            "large 16": Tile(128, 128, 8, 4),
            "large 32": Tile(128, 128, 8, 4),
            "derivative 32": Tile(128, 128, 8, 4),
            "small 16": Tile(64, 64, 4, 4),
            "small 32": Tile(64, 64, 8, 3),
            "few 16": Tile(32, 64, 4, 5),
            "few 32": Tile(32, 64, 4, 4),
            **_UNALIGNED,
        },
        "gfx942": {
            "large 16": Tile(128, 128, 4, 2),
            "large 32": Tile(128, 128, 4, 2),
            "derivative 32": Tile(128, 128, 4, 2),
            "small 16": Tile(64, 64, 4, 2),
            "small 32": Tile(64, 64, 4, 2),
            "few 16": Tile(32, 64, 4, 2),
            "few 32": Tile(32, 64, 4, 2),
        },
        "gfx950": {"large 16": Tile(256, 128, 8, 2)},
    },
)
# Aligned operands of 16 bits on GPUs with tensor memory accelerators; the parts of float32 pass
# through registers anyway. Four stages of the large tile and a part of the output take 208 of
# 227 KB; half the tile serves products whose large tiles would leave more units idle.
PERSISTENT = Table(
    "persistent_product",
    {
        "sm_90": {
            "large": PersistentTile(128, 256, 8, 4),
            "medium": PersistentTile(128, 128, 8, 4),
        },
        "sm_100": {
            "large": PersistentTile(128, 256, 8, 4, specialized=True),
            "medium": PersistentTile(128, 128, 8, 4, specialized=True),
        },
    },
)


@dataclass(frozen=True)
class Tables:
    """The tables of one kind of product: of operands of any layout, and of those in boxes.

    `weights` is the number of matrices whose products with one operand a tile holds: as many tiles
    of sums.
    """

    tiled: Table[Tile]
    persistent: Table[PersistentTile]
    weights: int


PLAIN = Tables(TILED, PERSISTENT, weights=1)

# Bound by the latency of memory: small tiles, of which four chunks are on their way at once.
SUM = Table(
    "sum_of_chunks",
    {
        "sm_80": {"any": Tile(2, 512, 4, 4)},
        "sm_90": {"any": Tile(2, 512, 4, 4)},
        "sm_100": {"any": Tile(2, 512, 4, 4)},
        "gfx942": {"any": Tile(2, 512, 2, 4)},  # its warps are twice as wide
    },
)
FEW_ROWS = 32
GROUP_M = 8
TILE_K_BYTES = 128  # one row of a tile of an operand: a cache line, 64 elements of 16 bits
PART_N_BYTES = 128  # columns of the output stored at once: the widest swizzled box of a bulk copy

# A chunk of K as deep as this costs more to multiply than its result to store and load again.
SHORTEST_CHUNK = 512
# Small tiles share a unit: so many programs keep the memory of each busy.
SMALL_TILE, PROGRAMS_OF_SMALL_TILES = 64 * 64, 2
FILLED = 0.75  # of the units at work, more programs are not worth a smaller tile
# A larger tile reads less per product: a smaller one must save so much of the busiest unit's work.
WORTH_SMALLER = 0.9


@dataclass(frozen=True)
class Choice:
    """A kernel by the type of its tile, rows of the tile, and how K is split: `chunks` of `chunk`
    tiles, of `block_k` elements each."""

    tile: Tile
    block_m: int
    block_k: int
    chunks: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Problem:
    """`boxes`: tensor descriptors can describe operands and output; `aligned`: operands are read 16
    bytes at a time."""

    rows: int
    columns: int
    depth: int
    batches: int
    itemsize: int
    boxes: bool
    derivative: bool = False  # in the epilogue
    tables: Tables = PLAIN
    aligned: bool = True

    def tiles(self, tile: Tile) -> int:
        return self.batches * (
            divide_up(self.rows, min(tile.m, block(self.rows))) * divide_up(self.columns, tile.n)
        )

    def split(self, tile: Tile, architecture: Architecture) -> Choice:
        small = tile.m * tile.n * self.tables.weights <= SMALL_TILE
        programs = architecture.units * (PROGRAMS_OF_SMALL_TILES if small else 1)
        most = max(1, min(programs // self.tiles(tile), self.depth // SHORTEST_CHUNK))
        block_k = TILE_K_BYTES // self.itemsize
        blocks = divide_up(self.depth, block_k)
        chunk = divide_up(blocks, most)
        chunks = divide_up(blocks, chunk) if blocks else 1
        return Choice(tile, min(tile.m, block(self.rows)), block_k, chunks, chunk)

    def choose(self, architecture: Architecture) -> Choice:
        def serves(tile: Tile) -> bool:
            """Whether enough units have work, and not half of it on rows that are not there."""
            programs = self.tiles(tile) * self.split(tile, architecture).chunks
            return self.rows > tile.m // 2 and programs >= FILLED * architecture.units

        def busiest(tile: Tile) -> int:
            return divide_up(self.tiles(tile), architecture.units) * tile.m * tile.n

        bits = 8 * self.itemsize
        tiled, persistent = self.tables.tiled, self.tables.persistent
        table: Table[Any] = tiled
        kind = f"small {bits}"
        if self.rows <= FEW_ROWS:
            kind = f"few {bits}"
        elif serves(tiled.shipped(architecture, f"large {bits}")):
            kind = "derivative 32" if self.derivative and bits == 32 else f"large {bits}"
        if self.boxes and self.rows > FEW_ROWS and architecture.tiles in persistent.rows:
            large, medium = (persistent.shipped(architecture, k) for k in ("large", "medium"))
            smaller = busiest(medium) < WORTH_SMALLER * busiest(large)
            if serves(medium if smaller else large):
                table, kind = persistent, "medium" if smaller else "large"
        unaligned = None if self.aligned else f"unaligned {kind}"
        return self.split(table.choose(architecture, kind, unaligned), architecture)
