"""What an epilogue adds to the product that it is fused into: ours against ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from rich.table import Table

import lanewise
from bench import table
from bench.case import FLOAT32_AND_BFLOAT16, Case, Result, Task
from bench.gemm.operands import activations, layer, linear_bytes, weight
from bench.limits import Limits
from bench.section import Section

ROWS, INPUTS, OUTPUTS = 512, 768, 3072
PLAIN = ""


def _epilogues(dtype: torch.dtype) -> Case:
    x = activations(ROWS, INPUTS, dtype)
    plain, panels = layer(INPUTS, OUTPUTS, dtype)
    bias, residual = torch.randn(OUTPUTS).to(dtype), activations(ROWS, OUTPUTS, dtype)

    def product() -> torch.Tensor:
        return F.linear(x.float(), plain.float())

    return Case(
        Task(
            f"linear_packed {ROWS}×{INPUTS}→{OUTPUTS}",
            dtype,
            flops=2 * ROWS * INPUTS * OUTPUTS,
            bytes=linear_bytes(ROWS, INPUTS, OUTPUTS, dtype),
        ),
        ours={
            PLAIN: lambda: lanewise.linear_packed(x, panels),
            "+ bias": lambda: lanewise.linear_packed(x, panels, bias),
            "+ gelu": lambda: lanewise.linear_packed(x, panels, activation="gelu"),
            "+ silu": lambda: lanewise.linear_packed(x, panels, activation="silu"),
            "+ residual": lambda: lanewise.linear_packed(x, panels, None, residual),
        },
        peers={},
        reference=product,
        references={
            "+ bias": lambda: product() + bias,
            "+ gelu": lambda: F.gelu(product()),
            "+ silu": lambda: F.silu(product()),
            "+ residual": lambda: product() + residual,
        },
    )


def _gate(dtype: torch.dtype) -> Case:
    x = activations(ROWS, INPUTS, dtype)
    weights = [weight(INPUTS, OUTPUTS, dtype) for _ in range(2)]
    gate, up = (lanewise.pack_weight(w) for w in weights)

    def products() -> tuple[torch.Tensor, ...]:
        return tuple(F.linear(x.float(), w.float()) for w in weights)

    def gated() -> torch.Tensor:
        left, right = products()
        return F.silu(left) * right

    return Case(
        Task(
            f"two linear_packed {ROWS}×{INPUTS}→{OUTPUTS}",
            dtype,
            flops=4 * ROWS * INPUTS * OUTPUTS,
            bytes=2 * linear_bytes(ROWS, INPUTS, OUTPUTS, dtype),
        ),
        ours={
            PLAIN: lambda: (lanewise.linear_packed(x, gate), lanewise.linear_packed(x, up)),
            "silu and gate": lambda: lanewise.gated_linear_packed(x, gate, up),
        },
        peers={},
        reference=products,
        references={"silu and gate": gated},
    )


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (
            result.label(way),
            result.task.dtype_name,
            table.milliseconds(result, way),
            table.share(result, way, limits),
            _cost(result, way),
        )
        for result in results
        for way in result.ways
    ]
    columns = ("work", "dtype", "lanewise", "of the limit", "cost")
    yield table.build("epilogue", columns, rows, texts=2)


def _cells(result: Result, limits: Limits) -> dict[str, str]:
    return {result.label(way): _cost(result, way) for way in result.ways if way != PLAIN}


def _cost(result: Result, way: str) -> str:
    if way == PLAIN:
        return ""
    if not {PLAIN, way} <= result.seconds.keys():
        return table.WRONG
    return f"{result.seconds[way] / result.seconds[PLAIN] - 1:+.1%}"


# A difference of a few per cent takes more samples to be seen than a ratio to a peer.
SECTION = Section(
    "epilogue",
    [partial(case, dtype) for case in (_epilogues, _gate) for dtype in FLOAT32_AND_BFLOAT16],
    seconds=0.8,
    tables=_tables,
    cells=_cells,
    plot=None,
)
