"""Every tile of the kernels of gradients: through activations, and the sums of biases."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import gemm
from .case import TYPES, Case, Promise, empty

PROMISES = {
    "column_sum": Promise(products=False, copies=False),
    "gated_gradient": Promise(products=False, copies=False),
}


# Rows, output and input features.
SHAPES = {"large": (4096, 4096, 4096), "small": (256, 256, 4096), "few": (1, 4096, 4096)}


def _linear(kind: str, dtype: torch.dtype, activation: str, device: str) -> object:
    rows, columns, depth = SHAPES[kind]
    return gemm.linear_backward(
        empty(rows, columns, dtype=dtype, device=device),
        empty(rows, depth, dtype=dtype, device=device),
        empty(columns, depth, dtype=dtype, device=device),
        empty(columns, dtype=dtype, device=device),
        activation,
        True,
        True,
        True,
    )


def _gated(dtype: torch.dtype, size: int, device: str) -> object:
    def t(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return empty(*shape, dtype=dtype, device=device)

    rows = (4096, size)
    grad, x, gate, up = t(*rows), t(*rows), t(size, size), t(size, size)
    gate_sums, up_sums = (t(*rows, dtype=torch.float32).contiguous() for _ in range(2))
    biases = t(size), t(size)
    return gemm.gated_linear_backward(
        grad, x, gate, up, gate_sums, up_sums, *biases, "gelu_tanh", True, True, True
    )


def cases() -> list[Case]:
    rows = [
        (kind, activation, name)
        for kind in SHAPES
        for activation, name in (("gelu_tanh", "bf16"), ("gelu_tanh", "f32"), ("silu", "f32"))
    ]
    linear = [
        Case(
            f"linear backward {kind} {activation} {name}",
            functools.partial(_linear, kind, TYPES[name], activation),
        )
        for kind, activation, name in [*rows, ("large", "none", "f16")]
    ]
    gated = [
        Case(f"gated backward {name}", functools.partial(_gated, TYPES[name], 4096))
        for name in ("bf16", "f32")
    ]
    return linear + gated
