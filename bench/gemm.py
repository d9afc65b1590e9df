"""Matrix products: linear layers of known models, plain, fused, gated and packed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import lanewise
from bench.case import Case


def cases() -> Iterator[Case]:
    """Rows × in → out."""
    yield _matmul(1024, torch.float32)
    yield _linear(2048, 384, 1536, torch.float32, activation="gelu")
    yield _linear(2048, 384, 1536, torch.float32, activation="gelu", packed=True)
    yield _linear(512, 768, 3072, torch.bfloat16)
    yield _linear(1, 4096, 14336, torch.float32)
    yield _linear(1, 4096, 14336, torch.bfloat16)
    yield _linear(37, 131, 257, torch.float32)
    yield _gated(512, 1024, 2816, torch.float32)


def _matmul(n: int, dtype: torch.dtype) -> Case:
    a, b = (torch.randn(n, n, dtype=dtype) for _ in range(2))
    return Case(
        f"matmul {n}×{n}×{n}",
        dtype,
        lambda: lanewise.matmul(a, b),
        lambda: a @ b,
        flops=2 * n**3,
        bytes=3 * n * n * dtype.itemsize,
    )


def _linear(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    activation: str = "none",
    packed: bool = False,
) -> Case:
    x, weight, bias = _operands(rows, inputs, outputs, dtype)
    panels = lanewise.pack_weight(weight)

    def torchs() -> torch.Tensor:
        y = F.linear(x, weight, bias)
        return F.gelu(y) if activation == "gelu" else y

    def ours() -> torch.Tensor:
        if packed:
            return lanewise.linear_packed(x, panels, bias, activation=activation)
        return lanewise.linear(x, weight, bias, activation=activation)

    fused = "" if activation == "none" else f" + {activation}"
    return Case(
        f"linear{fused} {rows}×{inputs}→{outputs}{', packed' if packed else ''}",
        dtype,
        ours,
        torchs,
        flops=2 * rows * inputs * outputs,
        bytes=_bytes(rows, inputs, outputs, dtype),
    )


def _gated(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Case:
    x, gate, _ = _operands(rows, inputs, outputs, dtype)
    up = torch.randn_like(gate) / inputs**0.5
    return Case(
        f"gated_linear silu {rows}×{inputs}→{outputs}",
        dtype,
        lambda: lanewise.gated_linear(x, gate, up),
        lambda: F.silu(F.linear(x, gate)) * F.linear(x, up),
        flops=4 * rows * inputs * outputs,
        bytes=_bytes(rows, inputs, outputs, dtype) + inputs * outputs * dtype.itemsize,
    )


def _operands(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, inputs, dtype=dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5
    return x, weight, torch.randn(outputs, dtype=dtype)


def _bytes(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> int:
    return (rows * inputs + inputs * outputs + rows * outputs) * dtype.itemsize
