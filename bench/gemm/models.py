"""The linear layers of known models over rows from one token to a long prompt."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import RenderableType

from bench import table
from bench.case import DTYPES, Result
from bench.gemm.linear import linear
from bench.limits import Limits
from bench.section import Section

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
LAYERS = {
    "BERT-base": ((768, 768), (768, 3072), (3072, 768)),
    "GPT-2": ((768, 2304),),
    "Llama-3.2-1B": ((2048, 2048), (2048, 512), (2048, 8192), (8192, 2048)),
    "Gemma-3-270M": ((640, 1024), (640, 256), (1024, 640), (640, 2048), (2048, 640)),
}
WAYS = {"": "unpacked", "packed": "packed"}


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[RenderableType]:
    columns = ["dtype", "rows"]
    columns += [f"{kind}: {of}" for kind in WAYS.values() for of in ("mean", "least")]
    groups: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.task.dtype_name, result.task.rows].append(result)
    rows = [
        (dtype, str(count), *(cell for way in WAYS for cell in _summary(group, way)))
        for (dtype, count), group in groups.items()
    ]
    yield table.build("models: × torch, geometric mean over the layers", columns, rows, texts=1)

    slower = sorted(
        (ratio, result.task.dtype_name, f"{result.task.series}: {result.label(way)}")
        for result in results
        for way in WAYS
        if (ratio := result.ratio(way, "torch")) is not None and ratio < 1
    )
    if not slower:
        yield f"models: none of {len(results) * len(WAYS)} points is below torch"
        return
    yield table.build(
        f"models: {len(slower)} of {len(results) * len(WAYS)} points below torch",
        ("work", "dtype", "× torch"),
        [(work, dtype, f"{ratio:.2f}") for ratio, dtype, work in slower],
        texts=2,
    )


def _summary(results: Sequence[Result], way: str) -> tuple[str, str]:
    """The mean ratio to torch, and the least one with its layer."""
    ratios = {r.task.series: ratio for r in results if (ratio := r.ratio(way, "torch")) is not None}
    if len(ratios) < len(results):
        return table.WRONG, ""
    worst = min(ratios, key=ratios.__getitem__)
    return f"{statistics.geometric_mean(ratios.values()):.2f}", f"{worst} {ratios[worst]:.2f}"


SECTION = Section(
    "models",
    [
        partial(linear, rows, inputs, outputs, dtype, series=f"{model} {inputs}→{outputs}")
        for model, layers in LAYERS.items()
        for inputs, outputs in layers
        for dtype in DTYPES
        for rows in ROWS
    ],
    seconds=0.06,
    tables=_tables,
    cells=None,
    plot="ratios",
)
