"""Times of sides that take turns, with as many repetitions as their speed asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from bench.case import Case, Result, Sample, Side
from bench.check import Checker

# A sample shorter than this would measure the clock and the interpreter's own noise.
SAMPLE_SECONDS = 0.005
MIN_TURNS, MAX_TURNS = 2, 50
# Some peers take a hundred times as long (torch's 16-bit gradients on a CPU without such
# instructions): one call beside the warm-up tells enough, or the warm-up itself.
SLOW_SECONDS, VERY_SLOW_SECONDS = 0.5, 1.0

# NumPy's OpenBLAS has threads of its own, which spin for some 100 ms after a call: a linear layer
# of 5 ms took 9 to 14 right after one and 5.3 after this rest and one call that does not count
# (its threads sleep too, by then). The other way round it is the OpenMP threads of torch and
# lanewise that spin, and NumPy took 16 ms instead of 10.
OWN_THREADS = ("numpy", "onnxruntime", "openvino", "jax", "llama.cpp", "ctranslate2")
REST_SECONDS = 0.15
VISITS = 3


def measure(section: str, case: Case, seconds: float) -> Result:
    """Checks the sides, then lets the right ones alternate, each for about `seconds`."""
    sides = {**case.ours, **case.peers}
    with torch.inference_mode(not case.gradient):
        first, wrong = _first_calls(case, sides)
        samples = _alternate(sides, seconds, first)
    return Result(
        section,
        case.task,
        tuple(case.ours),
        tuple(case.peers),
        {side: min(times) for side, times in samples.items()},
        wrong,
        case.absent,
        samples={side: tuple(times) for side, times in samples.items()},
    )


def _first_calls(case: Case, sides: dict[str, Side]) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of the first call of each side that is right, and what is wrong with the others."""
    checker = Checker(case)
    first: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for name, side in sides.items():
        start = time.perf_counter()
        try:
            output = side()
            elapsed = time.perf_counter() - start
            if isinstance(output, Sample):
                output, elapsed = output.output, output.seconds
            fault = checker.fault(name, output)
        except Exception as error:  # whatever a foreign package throws
            fault = f"failed: {error}"
        if fault:
            wrong[name] = fault
        else:
            first[name] = elapsed
    return first, wrong


def _alternate(
    sides: dict[str, Side], seconds: float, first: dict[str, float]
) -> dict[str, list[float]]:
    """The times of each side, from as many turns as those of its first call suggest."""
    samples = {name: [time] for name, time in first.items()}
    for name in _in_turn(sides, dict.fromkeys(_below(VERY_SLOW_SECONDS, first), 1)):
        samples[name] = [_call(sides[name], 1)]
    once = {name: times[0] for name, times in samples.items()}
    calls = {n: max(1, round(SAMPLE_SECONDS / once[n])) for n in _below(SLOW_SECONDS, once)}
    turns = {n: round(seconds / (once[n] * calls[n])) for n in calls}
    turns = {n: min(max(turns[n], MIN_TURNS), MAX_TURNS) for n in calls}
    for name in _in_turn(sides, turns):
        samples[name].append(_call(sides[name], calls[name]))
    return samples


def _in_turn(sides: dict[str, Side], turns: dict[str, int]) -> Iterator[str]:
    """Whose turn it is, A B A B, as often as each has turns.

    Sides that have threads of their own are visited a few times between the others, and first, so
    that the machine is quiet at the end.
    """
    apart = [[name] for name in turns if name in OWN_THREADS]
    pools = [*apart, [name for name in turns if name not in OWN_THREADS]]
    visits = VISITS if apart else 1
    for visit in range(visits):
        for pool in pools:
            rounds = range(visit, max((turns[name] for name in pool), default=0), visits)
            due = [name for turn in rounds for name in pool if turn < turns[name]]
            if apart and due:
                time.sleep(REST_SECONDS)
                sides[due[0]]()
            yield from due


def _call(side: Side, calls: int) -> float:
    """Seconds of a call, the mean of so many; what the last one tells where it keeps the time."""
    start = time.perf_counter()
    for _ in range(calls):
        output = side()
    seconds = (time.perf_counter() - start) / calls
    return output.seconds if isinstance(output, Sample) else seconds


def _below(limit: float, seconds: dict[str, float]) -> list[str]:
    return [name for name, value in seconds.items() if value < limit]
