"""One measurement of one point, in this process or in one of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from bench.case import Result, Visit
from bench.growth import growth
from bench.limits import Limits
from bench.neighbours import Neighbours
from bench.section import Section
from bench.timing import measure

Place = tuple[int, int]  # a section and its point, by their indices
# Measures a place, each side for about so many seconds or the section's own, and returns the limits
# as they were beside it.
Visitor = Callable[[Place, float | None], tuple[Result, Limits]]
Visitors = Callable[[], AbstractContextManager[Visitor]]


def visit(
    section: Section, index: int, seconds: float | None, threads: int
) -> tuple[Result, Limits]:
    """Measures a point once, and the limits right after it."""
    case = section.points[index]()
    limits = Limits(threads)
    neighbours = Neighbours()
    result = measure(section.name, case, seconds or section.seconds)
    limit_seconds = limits.sample(case.task)
    result = replace(
        result,
        visits=(Visit(result.seconds, limit_seconds),),
        quiet=not neighbours.disturbed(threads),
    )
    if section.growth and not result.wrong:
        result = replace(result, growth=growth(section.points[index], case))
    return result, limits


def here(sections: Sequence[Section], threads: int) -> Visitors:
    """Visitors that measure in this process."""

    @contextmanager
    def visitor() -> Iterator[Visitor]:
        yield lambda place, seconds: visit(sections[place[0]], place[1], seconds, threads)

    return visitor


def apart(build: Callable[[], Sequence[Section]], threads: int) -> Visitors:
    """Visitors that have a process of their own each, which builds the sections again.

    Where its memory lies makes a process faster or slower for as long as it lives: `add_rms_norm`
    8192×4096, whose outputs are mapped anew in each call, took up to 1.4 times as long in one
    process as in another. Several processes show how much of that there is; one hides it.
    """

    @contextmanager
    def visitor() -> Iterator[Visitor]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, _begin, (build, threads)) as process:
            yield lambda place, seconds: process.submit(_visit, place, seconds).result()

    return visitor


_measured: tuple[Sequence[Section], int]  # in a visitor's process: the sections, and the threads


def _begin(build: Callable[[], Sequence[Section]], threads: int) -> None:
    global _measured
    _measured = build(), threads


def _visit(place: Place, seconds: float | None) -> tuple[Result, Limits]:
    sections, threads = _measured
    return visit(sections[place[0]], place[1], seconds, threads)
