"""What further threads gain over one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from rich.table import Table

import lanewise
from bench import table
from bench.case import Case, Result, Side, Task
from bench.gemm.operands import DTYPES, activations, layer, linear_bytes
from bench.limits import Limits
from bench.section import Section

SIZE = 1024
KINDS = ("unpacked", "packed", "torch")


def _linear(dtype: torch.dtype) -> Case:
    x = activations(SIZE, SIZE, dtype)
    weight, panels = layer(SIZE, SIZE, dtype)
    threads = torch.get_num_threads()

    def on(count: int, side: Side) -> Side:
        def run() -> object:
            torch.set_num_threads(count)
            try:
                return side()
            finally:
                torch.set_num_threads(threads)

        return run

    def sides(kind: str, side: Side) -> dict[str, Side]:
        return {_side(kind, count): on(count, side) for count in dict.fromkeys((1, threads))}

    return Case(
        Task(
            f"linear {SIZE}×{SIZE}→{SIZE}",
            dtype,
            flops=2 * SIZE**3,
            bytes=linear_bytes(SIZE, SIZE, SIZE, dtype),
        ),
        ours={
            **sides("unpacked", lambda: lanewise.linear(x, weight)),
            **sides("packed", lambda: lanewise.linear_packed(x, panels)),
        },
        peers=sides("torch", lambda: F.linear(x, weight)),
        reference=lambda: F.linear(x.float(), weight.float()),
    )


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (
            f"{result.task.work}, {kind}",
            result.task.dtype_name,
            *(table.milliseconds(result, _side(kind, count)) for count in (1, limits.threads)),
            _gain(result, kind, limits.threads),
        )
        for result in results
        for kind in KINDS
    ]
    rows.append(("multiply-adds in registers", "float32", "", "", f"{limits.scaling():.2f}"))
    columns = ("work", "dtype", "1 thread", f"{limits.threads} threads", "gain")
    yield table.build("threads", columns, rows, texts=2)


def _gain(result: Result, kind: str, threads: int) -> str:
    one, all_of_them = (result.seconds.get(_side(kind, count)) for count in (1, threads))
    return f"{one / all_of_them:.2f}" if one and all_of_them else table.WRONG


def _side(kind: str, threads: int) -> str:
    return f"{kind}, {threads} thread{'s' if threads > 1 else ''}"


SECTION = Section(
    "threads",
    [partial(_linear, dtype) for dtype in DTYPES],
    tables=_tables,
    cells=None,
    plot=None,
)
