"""From a file to the first token: the time, and the memory on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from bench import table
from bench.case import Case, Result, Task
from bench.limits import Limits
from bench.models import bars, checkpoints
from bench.models.bars import Bar, Found, pick
from bench.models.decoders import Lanewise, Transformers
from bench.models.shape import Shape
from bench.section import Section

PROMPT = (2, 651, 6037, 576, 6081, 603)  # any few tokens
NAME = "Gemma 3 270M"


def case(source: str, dtype: torch.dtype) -> Case:
    """Reads the quantized file, or the safetensors of the same weights, and a few tokens.

    What is read lies in the system's page cache, so disks do not count. Memory is that of a new
    process which has imported everything, beyond what it had before (see `bench.growth`).
    """
    path = {"GGUF": checkpoints.gemma_gguf, "safetensors": checkpoints.gemma}[source]()
    shape = Shape.of(checkpoints.gemma())
    peers = {}
    if source == "safetensors":  # transformers takes half a minute over the other
        peers["transformers"] = partial(_first, Transformers, path, dtype)
    return Case(
        Task(
            f"{NAME}, {source} to first token",
            dtype,
            flops=2 * len(PROMPT) * shape.matrices,
            bytes=dtype.itemsize * (shape.matrices + shape.head),
        ),
        ours={"": partial(_first, Lanewise, path, dtype)},
        peers=peers,
        reference=partial(_first, Transformers, checkpoints.gemma(), torch.float32),
    )


def _first(make: type[Lanewise | Transformers], path: Path, dtype: torch.dtype) -> Tensor:
    """The likeliest token after the prompt [1]."""
    token, _ = make(path, dtype).prefill(torch.tensor(PROMPT))
    return token


def times_weights(source: str, dtype: str) -> Found:
    """The most memory over that of the weights."""

    def found(results: Sequence[Result], limits: Limits) -> float | None:
        result = pick(results, f"{NAME}, {source}", dtype)
        if result is None or "" not in result.growth:
            return None
        return result.growth[""] / result.task.bytes

    return found


BARS = [
    Bar(f"{source}, {dtype}: peak memory over the weights", 1.3, times_weights(source, dtype), True)
    for source in ("GGUF", "safetensors")
    for dtype in ("float32", "bfloat16")
]


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (
            result.task.work,
            result.task.dtype_name,
            result.side_name(side),
            table.milliseconds(result, side),
            f"{result.growth[side] / result.task.bytes:.2f}" if side in result.growth else "",
        )
        for result in results
        for side in (*result.ways, *result.peers)
    ]
    columns = ("work", "dtype", "side", "first token", "memory / weights")
    yield table.build("load", columns, rows, texts=3)
    yield bars.build(BARS, results, limits)


SECTION = Section(
    "load",
    [
        partial(case, source, dtype)
        for source in ("GGUF", "safetensors")
        for dtype in (torch.float32, torch.bfloat16)
    ],
    seconds=1.0,
    tables=_tables,
    cells=None,
    plot=None,
    growth=True,
)
