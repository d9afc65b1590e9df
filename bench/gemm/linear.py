"""Linear layers: large ones, few rows against the memory, and one that is all overhead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench import peers
from bench.case import DTYPES, Case, Task
from bench.gemm.operands import activations, layer, linear_bytes
from bench.peers.question import Linear
from bench.section import Section
from lanewise import _host


def linear(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    names: Sequence[str] = ("torch",),
    series: str = "",
) -> Case:
    """rows × in → out, unpacked and packed."""
    x = activations(rows, inputs, dtype)
    weight, panels = layer(inputs, outputs, dtype)
    others, absent = peers.ask(Linear(x, weight), names)
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
        peers=others,
        reference=lambda: F.linear(x.float(), weight.float()),
        absent=absent,
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
        peers.EAGER,  # others would copy what is large
    )


LARGE = Section(
    "large",
    [
        partial(linear, rows, inputs, outputs, dtype, peers.ALL)
        for rows, inputs, outputs in ((2048, 2048, 2048), (512, 768, 3072), (64, 768, 3072))
        for dtype in DTYPES
    ],
)
SKINNY = Section(
    "skinny", [partial(_skinny, rows, dtype) for dtype in DTYPES for rows in (1, 2, 4)]
)
SMALL = Section("small", [partial(linear, 16, 16, 16, dtype, peers.ALL) for dtype in DTYPES])
