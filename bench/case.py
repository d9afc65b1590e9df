"""What a bench measures, and what it found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

Side = Callable[[], object]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32_AND_BFLOAT16 = DTYPES[:2]


@dataclass(frozen=True)
class Task:
    """The work itself, whoever does it."""

    work: str  # the op and its shape
    dtype: torch.dtype
    flops: float  # multiplications and additions that cannot be avoided
    bytes: float  # read or written at least once
    series: str = ""  # in a sweep: the curve that this is a point of,
    rows: int = 0  # and where on it: rows of a product, tokens of a sequence

    @property
    def dtype_name(self) -> str:
        """The dtype as tables print it."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Sample:
    """What a side returns that keeps the time itself, since not all that it does shall count."""

    output: Any
    seconds: float


def whole(output: Any) -> Any:
    """All of an output."""
    return output


@dataclass(frozen=True)
class Case:
    """The same task done by lanewise, in one way or several, and by its peers."""

    task: Task
    ours: Mapping[str, Side]  # by what sets a way apart: "" where nothing does, "packed", …
    peers: Mapping[str, Side]  # "torch", "numpy", …
    reference: Side  # the right result, in float32 or float64
    references: Mapping[str, Side] = field(default_factory=dict)  # of sides that add to the task
    compared: Callable[[Any], Any] = whole  # the part of an output that a reference gives
    absent: Mapping[str, str] = field(default_factory=dict)  # why a peer cannot run here
    gradient: bool = False  # whether the sides run a backward pass


@dataclass(frozen=True)
class Visit:
    """One of the times that a case was measured: the best seconds of each side in it, and those
    that the limits asked for as they were then."""

    seconds: Mapping[str, float]
    limit_seconds: float


@dataclass(frozen=True)
class Result:
    """The best time of each side; a side that computes something else has none."""

    section: str
    task: Task
    ways: tuple[str, ...]  # of lanewise
    peers: tuple[str, ...]
    seconds: Mapping[str, float]
    wrong: Mapping[str, str]  # what is wrong with a side
    absent: Mapping[str, str] = field(default_factory=dict)  # why a peer cannot run here
    growth: Mapping[str, int] = field(default_factory=dict)  # bytes, where the section asks
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # seconds, every turn's
    visits: tuple[Visit, ...] = ()
    quiet: bool = True  # no other process took processors that it needed

    def best_of(self, other: Result) -> Result:
        """The better times of two measurements of one case; a disturbed one yields to a quiet."""
        visits = (*self.visits, *other.visits)
        if self.quiet != other.quiet:
            return replace(self if self.quiet else other, visits=visits)
        sides = [*self.seconds, *other.seconds]
        seconds = {
            side: min(r.seconds[side] for r in (self, other) if side in r.seconds) for side in sides
        }
        samples = {
            side: (*self.samples.get(side, ()), *other.samples.get(side, ())) for side in sides
        }
        return replace(
            self,
            seconds=seconds,
            wrong={**self.wrong, **other.wrong},
            samples=samples,
            visits=visits,
        )

    def median(self, side: str) -> float:
        """Of all turns of a side, which ran."""
        return statistics.median(self.samples[side])

    def spread(self, side: str) -> float:
        """The distance between the quartiles of a side's turns, as a share of their median."""
        if len(self.samples[side]) < 2:
            return 0.0
        low, middle, high = statistics.quantiles(self.samples[side], n=4, method="inclusive")
        return (high - low) / middle

    def ratio(self, way: str, peer: str) -> float | None:
        """How many times as fast as a peer one of our ways is."""
        if way not in self.seconds or peer not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds[way]

    def label(self, way: str) -> str:
        """The work and the way that it was done."""
        return f"{self.task.work}, {way}" if way else self.task.work

    def side_name(self, side: str) -> str:
        """Who it is, and in which way."""
        return side if side in self.peers else f"lanewise {side}".strip()
