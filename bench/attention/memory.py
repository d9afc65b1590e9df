"""What a call takes beside its outputs: a score matrix would grow with the square of the length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.table import Table

from bench import table
from bench.attention.backward import backward
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import Result
from bench.limits import Limits
from bench.section import Section

UNKNOWN = "unknown"


def _problem(tokens: int) -> Problem:
    return Problem(1, 2, 2, tokens, tokens, 64, causal=True)


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (result.task.work, result.task.dtype_name, *(_mebibytes(result, s) for s in ("", "torch")))
        for result in results
    ]
    columns = ("work", "dtype", "lanewise", "torch")
    yield table.build("memory beside the outputs, at most", columns, rows, texts=2)


def _cells(result: Result, limits: Limits) -> dict[str, str]:
    ours, torchs = (_mebibytes(result, side) for side in ("", "torch"))
    return {f"memory of {result.task.work}": f"{ours} · torch {torchs}"}


def _mebibytes(result: Result, side: str) -> str:
    return f"{result.growth[side] / 2**20:.1f} MiB" if side in result.growth else UNKNOWN


SECTION = Section(
    "memory",
    [
        *(partial(forward, _problem(2**n), torch.float32) for n in range(10, 15)),
        *(partial(backward, _problem(2**n), torch.float32) for n in (10, 12)),
    ],
    seconds=0.01,
    tables=_tables,
    cells=_cells,
    plot=None,
    growth=True,
)
