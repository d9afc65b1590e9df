"""Linear layers: large ones, few rows against the memory, and one that is all overhead."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench.case import DTYPES, Case, Side, Task
from bench.gemm.operands import activations, layer, linear_bytes
from bench.section import Section
from lanewise import _host


def linear(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    numpy: bool = False,
    series: str = "",
) -> Case:
    """rows × in → out, unpacked and packed; NumPy has no 16-bit products worth the name."""
    x = activations(rows, inputs, dtype)
    weight, panels = layer(inputs, outputs, dtype)
    peers: dict[str, Side] = {"torch": lambda: F.linear(x, weight)}
    if numpy and dtype == torch.float32:
        left, right = x.numpy(), weight.numpy().T
        peers["numpy"] = lambda: left @ right
    return Case(
        Task(
            f"linear {rows}×{inputs}→{outputs}",
            dtype,
            flops=2 * rows * inputs * outputs,
            bytes=linear_bytes(rows, inputs, outputs, dtype),
            series=series,
            rows=rows,
        ),
        ours={
            "": lambda: lanewise.linear(x, weight),
            "packed": lambda: lanewise.linear_packed(x, panels),
        },
        peers=peers,
        reference=lambda: F.linear(x.float(), weight.float()),
    )


def _skinny(rows: int, dtype: torch.dtype) -> Case:
    """Llama's 4096→14336, or a multiple that no last-level cache keeps from call to call."""
    inputs, outputs = 4096, 14336
    weight_bytes = inputs * outputs * dtype.itemsize
    return linear(
        rows,
        inputs,
        outputs * (_host.cache_sizes()["l3"] // weight_bytes + 1),
        dtype,
        numpy=True,
    )


LARGE = Section(
    "large",
    [
        partial(linear, rows, inputs, outputs, dtype, numpy=True)
        for rows, inputs, outputs in ((2048, 2048, 2048), (512, 768, 3072), (64, 768, 3072))
        for dtype in DTYPES
    ],
)
SKINNY = Section(
    "skinny", [partial(_skinny, rows, dtype) for dtype in DTYPES for rows in (1, 2, 4)]
)
SMALL = Section("small", [partial(linear, 16, 16, 16, dtype, numpy=True) for dtype in DTYPES])
