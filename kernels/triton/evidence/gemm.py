"""Every tile of the matrix products' tables, with the costliest epilogue."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "tiled_product": Promise(),
    # Tensor descriptors hold the offsets of operands and output.
    "persistent_product": Promise(wide=False, specialized=("sm_100",)),
    "sum_of_chunks": Promise(products=False),
}

# Rows and columns of the output, and depth.
SHAPES = {
    "large": (8192, 8192, 4096),
    "medium": (512, 4096, 4096),
    "small": (256, 256, 4096),
    "several": (32, 4096, 4096),
    "few": (1, 4096, 4096),
    "deep": (1024, 1024, 1 << 16),  # the gradient of a small weight: K is split
}


def _linear(
    kind: str, dtype: torch.dtype, depth: int, residual: torch.dtype, device: str
) -> Tensor:
    rows, columns, _ = SHAPES[kind]
    return gemm.linear(
        empty(rows, depth, dtype=dtype, device=device),
        empty(columns, depth, dtype=dtype, device=device),
        empty(columns, dtype=dtype, device=device),
        empty(rows, columns, dtype=residual, device=device),
        activation="gelu",
    )


def _matmul(kind: str, dtype: torch.dtype, layouts: str, heads: bool, device: str) -> Tensor:
    """`layouts` are those of both operands: n has contiguous rows, t contiguous columns.

    With `heads`, matrices of one batch lie between those of another, as in attention: no tensor
    descriptor of three dimensions describes them.
    """
    rows, columns, depth = SHAPES[kind]

    def matrices(rows: int, columns: int, layout: str) -> Tensor:
        outer, inner = (rows, columns) if layout == "n" else (columns, rows)
        if heads:
            x = empty(2, outer, 2, inner, dtype=dtype, device=device).transpose(1, 2)
        else:
            x = empty(outer, inner, dtype=dtype, device=device)
        return x if layout == "n" else x.mT

    a, b = matrices(rows, depth, layouts[0]), matrices(depth, columns, layouts[1])
    return gemm.matmul(a, b)


def _linear_cases() -> list[Case]:
    plain = [(kind, name, 4096) for kind in list(SHAPES)[:-1] for name in ("bf16", "f32")]
    plain += [("large", "f16", 4096), ("large", "bf16", 1001)]
    cases = [
        Case(
            f"linear {kind} {name} {depth}",
            functools.partial(_linear, kind, TYPES[name], depth, TYPES[name]),
            aligned=depth % 16 == 0,
        )
        for kind, name, depth in plain
    ]
    launch = functools.partial(_linear, "large", TYPES["bf16"], 4096, torch.float32)
    return [*cases, Case("linear large bf16 4096, float32 residual", launch)]


def _matmul_cases() -> list[Case]:
    plain = [("large", name, layouts) for name in ("bf16", "f32") for layouts in ("nn", "tt")]
    plain += [("large", "bf16", "tn"), ("deep", "bf16", "tn")]
    heads = [("large", "bf16", layouts) for layouts in ("nn", "tn")]
    return [
        Case(
            f"matmul {kind} {name} {layouts}{suffix}",
            functools.partial(_matmul, kind, TYPES[name], layouts, bool(suffix)),
        )
        for suffix, rows in (("", plain), (" heads", heads))
        for kind, name, layouts in rows
    ]


def cases() -> list[Case]:
    return _linear_cases() + _matmul_cases()
