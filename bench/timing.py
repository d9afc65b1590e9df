"""Times of two sides that take turns, with as many repetitions as their speed asks for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.case import Case, Result
from lanewise.cli.timing import alternate

# A sample shorter than this would measure the clock and the interpreter's own noise.
SAMPLE_SECONDS = 0.01
MIN_ROUNDS, MAX_ROUNDS = 5, 50


def measure(family: str, case: Case, seconds: float) -> Result:
    """Runs both sides of a case, alternating, for about `seconds`."""
    sides = {"ours": case.ours, "torchs": case.torchs}
    with torch.inference_mode(not case.gradient):
        once = {name: _once(side) for name, side in sides.items()}
        calls = {name: max(1, round(SAMPLE_SECONDS / once[name])) for name in sides}
        a_round = sum(once[name] * calls[name] for name in sides)
        rounds = min(max(int(seconds / a_round), MIN_ROUNDS), MAX_ROUNDS)
        best = alternate({name: _repeated(sides[name], calls[name]) for name in sides}, rounds)
    return Result(family, case, best["ours"] / calls["ours"], best["torchs"] / calls["torchs"])


def _once(side: Callable[[], object]) -> float:
    """Seconds of one warm call, roughly."""
    side()
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _repeated(side: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            side()

    return run
