"""Whole sequences forward: head sizes, lengths, grouped heads, and all dtypes at equal speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.table import Table

import lanewise
from bench import peers, table
from bench.attention import exact
from bench.attention.problem import Problem
from bench.case import DTYPES, Case, Result
from bench.limits import Limits
from bench.section import Section

COMPARED = 2048  # tokens: where every peer is asked, some of which compile for seconds


def forward(
    problem: Problem,
    dtype: torch.dtype,
    names: Sequence[str] = peers.EAGER,
    series: str = "",
) -> Case:
    """lanewise and the peers of these names."""
    q, k, v = problem.operands(dtype)
    others, absent = peers.ask(problem.question(q, k, v), names)
    return Case(
        problem.task("attention", dtype, series),
        ours={
            "": lambda: lanewise.attention(
                q, k, v, causal=problem.causal, window_left=problem.window_left
            )
        },
        peers=others,
        reference=lambda: exact.attention(problem, q, k, v),
        compared=exact.sampled,
        absent=absent,
    )


def _problems() -> Iterator[Problem]:
    # Fewer heads of the longest sequences, which take long enough.
    for heads, tokens in ((12, 512), (12, 1024), (12, 2048), (4, 4096), (2, 8192)):
        for causal in (True, False):
            yield Problem(1, heads, heads, tokens, tokens, 64, causal)
    for dim in (128, 256):
        for tokens in (1024, 2048):
            for causal in (True, False):
                yield Problem(1, 8, 8, tokens, tokens, dim, causal)
    yield Problem(1, 32, 8, 2048, 2048, 128, causal=True)


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    yield from table.comparison(results, limits)
    plain = {r.task.work: r.seconds[""] for r in results if _is_float32(r) and "" in r.seconds}
    speeds: dict[str, dict[str, float]] = {}
    for result in results:
        work = result.task.work
        if not _is_float32(result) and work in plain and "" in result.seconds:
            speed = plain[work] / result.seconds[""]
            speeds.setdefault(result.task.dtype_name, {})[work] = speed
    yield table.build(
        "forward: speed of 16 bits, where float32 is 1",
        ("dtype", "least at", "least", "mean"),
        [(dtype, *_least_and_mean(by_work)) for dtype, by_work in speeds.items()],
        texts=2,
    )


def _least_and_mean(speeds: dict[str, float]) -> tuple[str, str, str]:
    least = min(speeds, key=speeds.__getitem__)
    return least, f"{speeds[least]:.2f}", f"{statistics.geometric_mean(speeds.values()):.2f}"


def _is_float32(result: Result) -> bool:
    return result.task.dtype == torch.float32


SECTION = Section(
    "forward",
    [
        partial(forward, problem, dtype, peers.ALL if problem.queries == COMPARED else peers.EAGER)
        for problem in _problems()
        for dtype in DTYPES
    ],
    seconds=0.15,
    tables=_tables,
)
