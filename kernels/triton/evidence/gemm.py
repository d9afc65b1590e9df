"""Every tile of the matrix products' tables, with the costliest epilogue."""

from __future__ import annotations

import functools

import torch

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {"tiled_product": Promise()}

SHAPES = {"large": (4096, 4096), "small": (256, 512), "few": (1, 4096)}  # rows and columns


def _linear(kind: str, dtype: torch.dtype, depth: int, device: str) -> None:
    rows, columns = SHAPES[kind]
    gemm.linear(
        empty(rows, depth, dtype=dtype, device=device),
        empty(columns, depth, dtype=dtype, device=device),
        empty(columns, dtype=dtype, device=device),
        empty(rows, columns, dtype=dtype, device=device),
        activation="gelu",
    )


def _matmul(kind: str, dtype: torch.dtype, layouts: str, device: str) -> None:
    """`layouts` are those of both operands: n has contiguous rows, t contiguous columns."""
    rows, columns = SHAPES[kind]
    shapes = ((2, rows, 4096), (2, 4096, columns))
    a, b = (
        empty(*shape, dtype=dtype, device=device)
        if layout == "n"
        else empty(shape[0], shape[2], shape[1], dtype=dtype, device=device).mT
        for shape, layout in zip(shapes, layouts, strict=True)
    )
    gemm.matmul(a, b)


def cases() -> list[Case]:
    rows = [(kind, name, 4096) for kind in ("large", "small", "few") for name in ("bf16", "f32")]
    rows += [("large", "f16", 4096), ("large", "bf16", 1001)]
    linear = [
        Case(
            f"linear {kind} {name} {depth}",
            functools.partial(_linear, kind, TYPES[name], depth),
            aligned=depth % 16 == 0,
        )
        for kind, name, depth in rows
    ]
    matmul = [
        Case(
            f"matmul {kind} {name} {layouts}",
            functools.partial(_matmul, kind, TYPES[name], layouts),
        )
        for kind in ("large", "small")
        for name in ("bf16", "f32")
        for layouts in ("nn", "tn", "tt")
    ]
    return linear + matmul
