"""Which points are measured when, and what became of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.case import Result, Visit
from bench.growth import growth
from bench.limits import Limits
from bench.neighbours import Neighbours
from bench.section import Section
from bench.timing import measure

Point = tuple[Section, int]  # by its index


class Run:
    """Measures sections; whatever other processes disturb is measured once more at the end."""

    def __init__(
        self,
        sections: Sequence[Section],
        limits: Limits,
        seconds: float | None,
        passes: int = 1,
    ) -> None:
        """``passes``: how often every point is visited at least."""
        self.sections = sections
        self.limits = limits
        self._seconds = seconds
        self._results: dict[Section, dict[int, Result]] = {section: {} for section in sections}
        visits = [
            (section, i)
            for turn in range(max(passes, *(section.passes for section in sections)))
            for section in sections
            if turn < max(passes, section.passes)
            for i in range(len(section.points))
        ]
        self.interrupted = False
        first = self.visit(visits)
        still = self.visit(list(dict.fromkeys(first)))
        self.disturbed = (
            f"{len(first)} of {len(visits)} measurements by other processes, "
            f"{len(still)} when repeated"
        )

    def results(self, section: Section) -> list[Result]:
        """What the points of a section gave, in their order, as far as they were measured."""
        found = self._results[section]
        return [found[index] for index in range(len(section.points)) if index in found]

    def points(self, results: Collection[Result]) -> list[Point]:
        """Where these results come from."""
        return [
            (section, index)
            for section, found in self._results.items()
            for index, result in found.items()
            if result in results
        ]

    def visit(self, points: Sequence[Point]) -> list[Point]:
        """Measures points once more, and returns those that were disturbed.

        Ctrl-C ends it, and what was measured is kept.
        """
        if self.interrupted or not points:
            return []
        disturbed: list[Point] = []
        with (
            contextlib.suppress(KeyboardInterrupt),
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            ) as progress,
        ):
            self.interrupted = True
            self._measure(points, progress, disturbed)
            self.interrupted = False
        return disturbed

    def _measure(self, visits: Sequence[Point], progress: Progress, disturbed: list[Point]) -> None:
        bar = progress.add_task("", total=len(visits))
        for section, index in visits:
            case = section.points[index]()
            progress.update(bar, description=f"{section.name}: {case.task.work}")
            neighbours = Neighbours()
            result = measure(section.name, case, self._seconds or section.seconds)
            limit_seconds = self.limits.sample(case.task)
            result = replace(result, visits=(Visit(result.seconds, limit_seconds),))
            if neighbours.disturbed(self.limits.threads):
                result = replace(result, quiet=False)
                disturbed.append((section, index))
            if section.growth and not result.wrong:
                result = replace(result, growth=growth(section.points[index], case))
            found = self._results[section]
            found[index] = found[index].best_of(result) if index in found else result
            progress.advance(bar)
