"""Every tile of the gated products' tables, with both sums kept and without."""

from __future__ import annotations

import functools

import torch

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "tiled_gated_product": Promise(),
    # Tensor descriptors hold the offsets of operands and output.
    "persistent_gated_product": Promise(wide=False, specialized=("sm_100",)),
    "sum_of_gated_chunks": Promise(products=False),
}

# Rows and columns of the output, and depth. K is split where the tiles are fewer than the units.
SHAPES = {
    "large": (4096, 4096, 4096),
    "odd": (4096, 4092, 4096),  # rows of the output are not 16 bytes apart: no descriptors
    "medium": (512, 5120, 4096),
    "small": (256, 512, 512),
    "deep": (512, 1024, 1 << 14),
    "narrow": (64, 1024, 8192),
    "several": (32, 4096, 4096),
    "few": (1, 1024, 14336),
    "wide": (1, 28672, 4096),
}


def _gated(kind: str, dtype: torch.dtype, depth: int, layout: str, device: str) -> object:
    """`layout` is that of both weights: n has contiguous rows, t contiguous columns."""
    rows, columns, _ = SHAPES[kind]
    shape = (columns, depth) if layout == "n" else (depth, columns)
    gate, up = (empty(*shape, dtype=dtype, device=device) for _ in range(2))
    return gemm.gated_linear_for_backward(
        empty(rows, depth, dtype=dtype, device=device),
        gate if layout == "n" else gate.mT,
        up if layout == "n" else up.mT,
        empty(columns, dtype=dtype, device=device),
        empty(columns, dtype=dtype, device=device),
        activation="gelu",
    )


def _plain(dtype: torch.dtype, device: str) -> object:
    """As in a model that infers: no biases, nothing kept."""
    gate, up = (empty(4096, 4096, dtype=dtype, device=device) for _ in range(2))
    return gemm.gated_linear(empty(4096, 4096, dtype=dtype, device=device), gate, up)


def cases() -> list[Case]:
    rows = [(kind, name, SHAPES[kind][2]) for kind in SHAPES for name in ("bf16", "f32")]
    rows += [("large", "f16", 4096), ("large", "bf16", 1001)]
    kept = [
        Case(
            f"gated {kind} {name} {depth}",
            functools.partial(_gated, kind, TYPES[name], depth, "n"),
            aligned=depth % 16 == 0,
        )
        for kind, name, depth in rows
    ]
    transposed = [
        Case(
            f"gated {kind} {name} transposed",
            functools.partial(_gated, kind, TYPES[name], SHAPES[kind][2], "t"),
        )
        for kind, name in (("large", "bf16"), ("large", "f32"), ("small", "bf16"))
    ]
    return [*kept, *transposed, Case("gated plain bf16", functools.partial(_plain, TYPES["bf16"]))]
