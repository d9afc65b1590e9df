"""Tables of tiles: one per kernel, a row per architecture and class of problem.

Tiles are chosen from shapes in Python, before a launch; nothing is timed at run time. What
`python -m lanewise tune` found faster on the GPU at hand takes the place of a table's row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from .target import Architecture

Tile = TypeVar("Tile")  # a frozen dataclass with `warps`, `stages` and the extents of a kernel
Row = tuple[str, str, str]  # table, architecture, class of problem

TABLES: dict[str, Table[Any]] = {}
_watcher: ContextVar[list[Row] | None] = ContextVar("watcher", default=None)


class Table(Generic[Tile]):
    """The tiles of one kernel: `rows[architecture][class of problem]`.

    An architecture whose tiles are another's (`Architecture.tiles`) may have rows of its own too.
    Rows whose class begins with "unaligned" are for what is read element by element, whose
    addresses take registers: where the architecture has none, what is aligned leaves enough.
    """

    def __init__(self, name: str, rows: dict[str, dict[str, Tile]]) -> None:
        self.name, self.rows = name, rows
        TABLES[name] = self

    def choose(
        self, architecture: Architecture, problem: str, unaligned: str | None = None
    ) -> Tile:
        """The tile of a class of problem; `unaligned` names the class that the problem has because
        it is not `alignment.aligned`."""
        if unaligned in self.rows[architecture.tiles]:
            problem = unaligned
        watcher = _watcher.get()
        if watcher is not None:
            watcher.append((self.name, architecture.name, problem))
        return architecture.tuned.get((self.name, problem)) or self.shipped(architecture, problem)

    def shipped(self, architecture: Architecture, problem: str) -> Tile:
        own = self.rows.get(architecture.name, {}).get(problem)
        return own or self.rows[architecture.tiles][problem]


@contextlib.contextmanager
def watch() -> Iterator[list[Row]]:
    """Collects the rows that launches inside the block take their tiles from."""
    rows: list[Row] = []
    token = _watcher.set(rows)
    try:
        yield rows
    finally:
        _watcher.reset(token)
