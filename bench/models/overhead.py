"""How much of a decoding step passes outside of ops, in Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from bench import table
from bench.case import Case, Result, Sample
from bench.limits import Limits
from bench.models import bars, gemma
from bench.models.bars import Bar, Found, pick
from bench.models.decoders import TIMED
from bench.models.generation import STEPS, decode
from bench.section import Section

BETWEEN = "between ops"


def case(dtype: torch.dtype) -> Case:
    """A few tokens, timed as they are, and once more under torch's profiler.

    The profiler writes down when each op begins and ends; what no op covers is Python: ours, and
    torch's on the way into an op. That is measured in place, among kernels that stream the weights
    and leave the interpreter's own memory cold, which a smaller model would not do. The profiler's
    own work between two ops is in it, so it is a little less in truth. Work that C++ does before
    and after a kernel (checks, outputs) belongs to the op.
    """
    whole = gemma.case(decode, dtype)
    side = whole.ours[""]

    def between() -> Sample:
        with _silenced(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            output = side()
        assert isinstance(output, Sample)
        steps = next(event for event in profiler.key_averages() if event.key == TIMED)
        return Sample(output.output, steps.self_cpu_time_total * 1e-6)

    return Case(
        whole.task,
        ours={"": side, BETWEEN: between},
        peers={},
        reference=whole.reference,
        compared=whole.compared,
    )


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what the profiler's library writes to the error stream, whatever its log level."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def share(dtype: str) -> Found:
    """Of the time of a step."""

    def found(results: Sequence[Result], limits: Limits) -> float | None:
        result = pick(results, gemma.MODEL.name, dtype)
        if result is None or not {"", BETWEEN} <= result.seconds.keys():
            return None
        return result.seconds[BETWEEN] / result.seconds[""]

    return found


BARS = [
    Bar(f"between ops, share of a token's time in {dtype}", 0.1, share(dtype), most=True)
    for dtype in ("float32", "bfloat16")
]


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (
            result.label(way),
            result.task.dtype_name,
            f"{result.seconds[way] / STEPS * 1e3:.3g} ms" if way in result.seconds else table.WRONG,
        )
        for result in results
        for way in result.ways
    ]
    yield table.build("overhead", ("work", "dtype", "a token"), rows, texts=2)
    yield bars.build(BARS, results, limits)


SECTION = Section(
    "overhead",
    [partial(case, dtype) for dtype in (torch.float32, torch.bfloat16)],
    seconds=1.0,
    tables=_tables,
    cells=None,
    plot=None,
)
