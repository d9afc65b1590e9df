"""What a section must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from bench import table
from bench.case import Result
from bench.limits import Limits

Found = Callable[[Sequence[Result], Limits], float | None]


@dataclass(frozen=True)
class Bar:
    """A number that a section's results give, and what it has to be."""

    what: str
    bound: float
    found: Found  # nothing where a side that it needs is wrong or absent
    most: bool = False  # the bound is the most that it may be, not the least

    def cells(self, results: Sequence[Result], limits: Limits) -> tuple[str, str, str, str]:
        """What, the bound, what was found, and the verdict."""
        value = self.found(results, limits)
        bound = f"{'≤' if self.most else '≥'} {self.bound:g}"
        if value is None:
            return self.what, bound, "", "not measured"
        reached = value <= self.bound if self.most else value >= self.bound
        return self.what, bound, f"{value:.2f}", "yes" if reached else "no"


def build(bars: Sequence[Bar], results: Sequence[Result], limits: Limits) -> Table:
    """All of them in one table."""
    columns = ("bar", "bound", "found", "reached")
    return table.build("", columns, [bar.cells(results, limits) for bar in bars], texts=2)


def over(work: str, dtype: str, peers: Sequence[str], way: str = "") -> Found:
    """How many times as fast as the best of those peers that run here."""

    def found(results: Sequence[Result], limits: Limits) -> float | None:
        result = pick(results, work, dtype)
        if result is None:
            return None
        ratios = [r for peer in peers if (r := result.ratio(way, peer)) is not None]
        return min(ratios, default=None)

    return found


def of_the_limit(work: str, dtype: str) -> Found:
    """The share of the limit that binds."""

    def found(results: Sequence[Result], limits: Limits) -> float | None:
        result = pick(results, work, dtype)
        if result is None or "" not in result.seconds:
            return None
        return limits.binding(result.task)[1] / result.seconds[""]

    return found


def pick(results: Sequence[Result], work: str, dtype: str) -> Result | None:
    """The one result of a work (by the beginning of its name) and a dtype."""
    return next(
        (r for r in results if r.task.work.startswith(work) and r.task.dtype_name == dtype), None
    )
