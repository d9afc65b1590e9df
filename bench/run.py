"""Which points are measured when, and what became of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.case import Result
from bench.limits import Limits
from bench.section import Section
from bench.visit import Place, Visitors, here


class Run:
    """Measures sections; whatever other processes disturb is measured once more at the end."""

    def __init__(
        self,
        sections: Sequence[Section],
        limits: Limits,
        seconds: float | None,
        passes: int = 1,
        visitors: Visitors | None = None,
    ) -> None:
        """``passes``: how often every point is visited at least, each time by a visitor of its
        own; without ``visitors`` all are this process."""
        self.sections = sections
        self.limits = limits
        self._seconds = seconds
        self._visitors = visitors or here(sections, limits.threads)
        self._results: dict[Place, Result] = {}
        self.interrupted = False
        turns = [
            [
                (number, index)
                for number, section in enumerate(sections)
                if turn < max(passes, section.passes)
                for index in range(len(section.points))
            ]
            for turn in range(max(passes, *(section.passes for section in sections)))
        ]
        first = [place for turn in turns for place in self.visit(turn)]
        still = self.visit(list(dict.fromkeys(first)))
        self.disturbed = (
            f"{len(first)} of {sum(map(len, turns))} measurements by other processes, "
            f"{len(still)} when repeated"
        )

    def results(self, section: Section) -> list[Result]:
        """What the points of a section gave, in their order, as far as they were measured."""
        number = self.sections.index(section)
        places = ((number, index) for index in range(len(section.points)))
        return [self._results[place] for place in places if place in self._results]

    def places(self, results: Collection[Result]) -> list[Place]:
        """Where these results come from."""
        return [place for place, result in self._results.items() if result in results]

    def visit(self, places: Sequence[Place]) -> list[Place]:
        """Measures points once more, and returns those that were disturbed.

        Ctrl-C ends it, and what was measured is kept.
        """
        if self.interrupted or not places:
            return []
        disturbed: list[Place] = []
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
            self._measure(places, progress, disturbed)
            self.interrupted = False
        return disturbed

    def _measure(self, places: Sequence[Place], progress: Progress, disturbed: list[Place]) -> None:
        bar = progress.add_task("", total=len(places))
        with self._visitors() as visit:
            for place in places:
                progress.update(bar, description=self.sections[place[0]].name)
                result, limits = visit(place, self._seconds)
                self.limits.add(limits)
                if not result.quiet:
                    disturbed.append(place)
                known = self._results.get(place)
                self._results[place] = known.best_of(result) if known else result
                progress.update(bar, description=f"{result.section}: {result.task.work}", advance=1)
