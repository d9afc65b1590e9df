"""Every tile of the norms' tables, with every vector that a norm takes."""

from __future__ import annotations

import functools

import torch

from .. import norm
from ..norm.tiles import ROWS
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "norm_rows": Promise(products=False, copies=False),
    "norm_long_row": Promise(products=False, copies=False),
    "norm_backward_rows": Promise(products=False, copies=False),
    "norm_backward_long_row": Promise(products=False, copies=False),
    "norm_partial_sums": Promise(products=False, copies=False),
    "sum_partials": Promise(products=False, copies=False),
}
TOKENS = 8192
LONG = 32768


def _add_norm(kind: str, dtype: torch.dtype, columns: int, device: str) -> None:
    """A norm of a sum; weights are float32, which takes the most registers."""
    x, residual = (empty(TOKENS, columns, dtype=dtype, device=device) for _ in range(2))
    vector = empty(columns, dtype=torch.float32, device=device)
    if kind == "layer":
        norm.add_layer_norm(x, residual, vector, vector)
    else:
        norm.add_rms_norm(x, residual, vector)


def _rms_norm_of_heads(dtype: torch.dtype, device: str) -> None:
    """Heads of a projection that holds queries, keys and values: rows at three levels."""
    projected = empty(2, 4096, 3, 32, 128, dtype=dtype, device=device)
    norm.rms_norm(projected[:, :, 0], empty(128, dtype=dtype, device=device))


def _backward(kind: str, dtype: torch.dtype, columns: int, device: str) -> None:
    """Of a sum whose own gradient is given too."""
    grad, grad_sum, x, residual = (
        empty(TOKENS, columns, dtype=dtype, device=device) for _ in range(4)
    )
    weight = empty(columns, dtype=torch.float32, device=device)
    if kind == "layer":
        norm.layer_norm_backward(grad, grad_sum, x, residual, weight, 1e-5)
    else:
        norm.rms_norm_backward(grad, grad_sum, x, residual, weight, 1e-6, 0.0)


def cases() -> list[Case]:
    sizes = sorted({int(row) for rows in ROWS.rows.values() for row in rows} | {LONG})
    rows = [
        (kind, name, columns)
        for columns in sizes
        for kind, name in (("layer", "bf16"), ("layer", "f32"), ("rms", "bf16"))
    ]
    rows += [("rms", "f16", 4096), ("rms", "f32", 4096), ("rms", "bf16", 5120)]
    added = [
        Case(
            f"add_{kind}_norm {name} {columns}",
            functools.partial(_add_norm, kind, TYPES[name], columns),
        )
        for kind, name, columns in rows
    ]
    backward = [
        Case(
            f"{kind}_norm backward {name} {columns}",
            functools.partial(_backward, kind, TYPES[name], columns),
        )
        for kind, name, columns in rows
    ]
    heads = functools.partial(_rms_norm_of_heads, torch.bfloat16)
    return [*added, *backward, Case("rms_norm of heads bf16 128", heads)]
