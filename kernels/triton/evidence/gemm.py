"""Every tile of the matrix products' tables, with the costliest epilogue."""

from __future__ import annotations

import functools

import torch

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {"linear_forward": Promise()}


def _linear(kind: str, dtype: torch.dtype, depth: int, device: str) -> object:
    rows, columns = {"large": (4096, 4096), "small": (256, 512), "few": (1, 4096)}[kind]
    return gemm.linear(
        empty(rows, depth, dtype=dtype, device=device),
        empty(columns, depth, dtype=dtype, device=device),
        empty(columns, dtype=dtype, device=device),
        empty(rows, columns, dtype=dtype, device=device),
        activation="gelu",
    )


def cases() -> list[Case]:
    rows = [(kind, name, 4096) for kind in ("large", "small", "few") for name in ("bf16", "f32")]
    rows += [("large", "f16", 4096), ("large", "bf16", 1001)]
    return [
        Case(
            f"linear {kind} {name} {depth}",
            functools.partial(_linear, kind, TYPES[name], depth),
            aligned=depth % 16 == 0,
        )
        for kind, name, depth in rows
    ]
