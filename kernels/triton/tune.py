"""Finds the fastest tile of a table's row by timing its neighbours on the GPU at hand.

From the shipped tile the search walks to the fastest neighbour (one extent halved or doubled, half
or twice the warps, one stage more or less) until none is faster. A tile that does not compile, does
not fit, or computes something else than the shipped one is passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton

from . import target
from .evidence.case import Case
from .table import Row, Table, watch
from .target import Architecture

Timer = Callable[[Callable[[], object]], float]  # seconds of one call

MAX_WARPS, MAX_STAGES = 16, 8
SMALLEST_GAIN = 0.02  # less is noise
# Of the largest element, between two tiles that sum in another order.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
UNFIT = (
    triton.CompilationError,
    triton.runtime.errors.OutOfResources,
    triton.runtime.errors.PTXASError,
    AssertionError,
    ValueError,
)


@dataclass(frozen=True)
class Found:
    """The fastest tile of a row, and the seconds of it and of the shipped one in the same turn."""

    table: str
    problem: str
    tile: Any
    seconds: float
    shipped_seconds: float


def neighbours(tile: Any) -> Iterator[Any]:
    """The tiles that differ from `tile` in one number, by one step."""
    for field in dataclasses.fields(tile):
        value = getattr(tile, field.name)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if field.name == "stages":
            steps = [s for s in (value - 1, value + 1) if 1 <= s <= MAX_STAGES]
        elif field.name == "warps":
            steps = [s for s in (value // 2, 2 * value) if 1 <= s <= MAX_WARPS]
        else:
            steps = [s for s in (value // 2, 2 * value) if s >= 1]
        for step in steps:
            yield dataclasses.replace(tile, **{field.name: step})


class Trial:
    """One case on one device, with any tile in the place of one row."""

    def __init__(self, case: Case, row: Row, architecture: Architecture, device: str) -> None:
        self._case, self._device = case, device
        self._table, _, self._problem = row
        self._architecture = architecture
        self._expected: list[Tensor] | None = None

    def seconds(self, tile: Any, timer: Timer) -> float | None:
        """Of all that the case launches; None where the tile is unfit or computes wrongly."""
        launches: list[Callable[[], object]] = []

        def keep(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict[str, Any]) -> None:
            launches.append(lambda: kernel[grid](*args, **options))

        tuned = {**self._architecture.tuned, (self._table, self._problem): tile}
        architecture = dataclasses.replace(self._architecture, tuned=tuned)
        torch.manual_seed(0)
        try:
            with target.record(architecture, keep):
                outputs = _tensors(self._case.launch(self._device))

            def run() -> None:
                for launch in launches:
                    launch()

            run()
            if self._expected is None:
                self._expected = [output.clone() for output in outputs]
            elif not all(map(_close, outputs, self._expected)):
                return None
            return timer(run)
        except UNFIT:
            return None


def search(table: Table[Any], trial: Trial, problem: str, timer: Timer, first: Any) -> Found:
    """The fastest tile for `trial`, walking from the tile `first`."""
    best, best_seconds = first, trial.seconds(first, timer)
    if best_seconds is None:
        raise RuntimeError(
            f"lanewise.tune: the shipped tile of {table.name} {problem} does not run"
        )
    tried = {first}
    while True:
        step, step_seconds = best, best_seconds
        for tile in neighbours(best):
            if tile in tried:
                continue
            tried.add(tile)
            seconds = trial.seconds(tile, timer)
            if seconds is not None and seconds < step_seconds:
                step, step_seconds = tile, seconds
        if step_seconds > (1 - SMALLEST_GAIN) * best_seconds:
            break
        best, best_seconds = step, step_seconds
    # Clocks move during a search: the two are compared once more, one right after the other.
    shipped_seconds = trial.seconds(first, timer)
    last_seconds = trial.seconds(best, timer)
    assert shipped_seconds is not None
    assert last_seconds is not None
    if last_seconds > (1 - SMALLEST_GAIN) * shipped_seconds:
        best, last_seconds = first, shipped_seconds
    return Found(table.name, problem, best, last_seconds, shipped_seconds)


def rows(cases: list[Case], architecture: Architecture) -> dict[Row, Case]:
    """Every row that the cases take a tile from, and the first aligned case that does."""
    found: dict[Row, Case] = {}
    for case in (c for c in cases if c.aligned):
        with target.record(architecture, lambda *_: None), watch() as used:
            case.launch("meta")
        for row in used:
            found.setdefault(row, case)
    return found


def _tensors(outputs: object) -> list[Tensor]:
    parts = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return [part for part in parts if isinstance(part, Tensor)]


def _close(output: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point() or expected.numel() == 0:
        return torch.equal(output, expected)
    tolerance = TOLERANCES[expected.dtype] * expected.abs().nan_to_num(0, 0, 0).max()
    return torch.allclose(output, expected, rtol=0, atol=float(tolerance), equal_nan=True)
