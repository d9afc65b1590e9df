"""Every length from short to long, for each head size: where a length or a size falls behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from rich.table import Table

from bench import table
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import FLOAT32_AND_BFLOAT16, Result
from bench.limits import Limits
from bench.section import Section

LENGTHS = tuple(2**n for n in range(7, 14))
DIMS = (64, 128, 256)
SIDES = {"": "lanewise", "torch": "torch"}


def _problem(tokens: int, dim: int) -> Problem:
    heads = min(12, 16384 // tokens)
    return Problem(1, heads, heads, tokens, tokens, dim, causal=True)


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    """A line for each curve, a column for each length."""
    curves: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        curves[result.task.series, result.task.dtype_name].append(result)
    rows = [
        (series, dtype, kind, *(table.percentage(r, side, limits) for r in points))
        for (series, dtype), points in curves.items()
        for side, kind in SIDES.items()
    ]
    columns = ("head size", "dtype", "side", *map(str, LENGTHS))
    yield table.build("sweep: share of the limit by length, causal", columns, rows, texts=3)


SECTION = Section(
    "sweep",
    [
        partial(forward, _problem(tokens, dim), dtype, series=f"D = {dim}")
        for dtype in FLOAT32_AND_BFLOAT16
        for dim in DIMS
        for tokens in LENGTHS
    ],
    seconds=0.05,
    tables=_tables,
    cells=None,
    plot="curves",
)
