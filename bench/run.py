"""Which points are measured when, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.case import Result
from bench.growth import growth
from bench.limits import Limits
from bench.neighbours import Neighbours
from bench.section import Section
from bench.timing import measure

Visit = tuple[Section, int]  # a point by its index


class Run:
    """Measures sections; whatever other processes disturb is measured once more at the end."""

    def __init__(self, sections: Sequence[Section], limits: Limits, seconds: float | None) -> None:
        self.sections = sections
        self.limits = limits
        self._seconds = seconds
        self._results: dict[Section, dict[int, Result]] = {section: {} for section in sections}
        visits = [(s, i) for s in sections for _ in range(s.passes) for i in range(len(s.points))]
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            first = self._measure(visits, progress)
            still = self._measure(list(dict.fromkeys(first)), progress)
        self.disturbed = (
            f"{len(first)} of {len(visits)} measurements by other processes, "
            f"{len(still)} when repeated"
        )

    def results(self, section: Section) -> list[Result]:
        """What the points of a section gave, in their order."""
        found = self._results[section]
        return [found[index] for index in range(len(section.points))]

    def _measure(self, visits: Sequence[Visit], progress: Progress) -> list[Visit]:
        """Those of the visits that were disturbed."""
        disturbed = []
        bar = progress.add_task("", total=len(visits))
        for section, index in visits:
            case = section.points[index]()
            progress.update(bar, description=f"{section.name}: {case.task.work}")
            neighbours = Neighbours()
            result = measure(section.name, case, self._seconds or section.seconds)
            self.limits.sample(case.task)
            if neighbours.disturbed(self.limits.threads):
                disturbed.append((section, index))
            if section.growth and not result.wrong:
                result = replace(result, growth=growth(section.points[index], case))
            found = self._results[section]
            found[index] = found[index].best_of(result) if index in found else result
            progress.advance(bar)
        return disturbed
