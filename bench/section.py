"""A question that a bench answers: what it measures, and how it tells what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import RenderableType

from bench import table
from bench.case import Case, Result
from bench.limits import Limits


@dataclass(frozen=True, eq=False)  # each is itself alone
class Section:
    """Points to be measured; each is built when its turn comes, so that one at a time is held."""

    name: str
    points: Sequence[Callable[[], Case]]
    seconds: float = 0.3  # of each side of a point, about
    # A machine's slow phase may outlast a point: passes visit all of them again and keep the best.
    passes: int = 1
    tables: Callable[[Sequence[Result], Limits], Iterable[RenderableType]] = table.comparison
    # The cells of a page's table by their labels; without it the section is left out there.
    cells: Callable[[Result, Limits], dict[str, str]] | None = table.cells
    plot: Literal["shares", "rows", "curves", "ratios", "bars"] | None = "shares"
    growth: bool = False  # whether memory is measured too; points must then be picklable
