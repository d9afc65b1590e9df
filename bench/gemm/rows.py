"""One layer with every number of rows up to a hundred and more: where one row costs too much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

from rich.table import Table

from bench import table
from bench.case import DTYPES, Result
from bench.gemm.linear import linear
from bench.limits import Limits
from bench.section import Section

INPUTS, OUTPUTS = 768, 3072
MOST = 128
SIDES = {"": "unpacked", "packed": "packed", "torch": "torch"}


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.task.dtype_name].append(result)
    rows = [
        (dtype, kind, *_cliff(points, side))
        for dtype, points in groups.items()
        for side, kind in SIDES.items()
    ]
    columns = ("dtype", "side", "rows", "time", "fair", "time per row")
    yield table.build(
        f"rows: the largest cliff of linear M×{INPUTS}→{OUTPUTS}", columns, rows, texts=2
    )


def _cliff(points: Sequence[Result], side: str) -> tuple[str, str, str, str]:
    """The row that makes all rows dearest: time should grow no faster than the rows do."""
    steps = [
        (after.seconds[side] / before.seconds[side], after.task.rows / before.task.rows, after)
        for before, after in pairwise(points)
        if side in before.seconds and side in after.seconds
    ]
    if not steps:
        return table.WRONG, "", "", ""
    time, fair, after = max(steps, key=lambda step: step[0] / step[1])
    rows = after.task.rows
    return f"{rows - 1} → {rows}", f"× {time:.2f}", f"× {fair:.2f}", f"× {time / fair:.2f}"


SECTION = Section(
    "rows",
    [
        partial(linear, rows, INPUTS, OUTPUTS, dtype, series="BERT-base 768→3072")
        for dtype in DTYPES
        for rows in range(1, MOST + 1)
    ],
    seconds=0.02,
    passes=2,  # neighbours are compared, and not in the same moment
    tables=_tables,
    cells=None,
    plot="rows",
)
