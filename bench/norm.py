"""Norms, alone and with the addition of a residual."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import lanewise
from bench.case import Case

# Per element: the sum of squares, the scaling and, where centred, the mean and the difference.
FLOPS = 6


def cases() -> Iterator[Case]:
    """Rows × columns."""
    yield _layer_norm(2048, 384, torch.float32)
    yield _layer_norm(8192, 4096, torch.float32)
    yield _rms_norm(8192, 4096, torch.bfloat16)
    yield _add_rms_norm(8192, 4096, torch.bfloat16)


def _layer_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    x, weight, bias = (torch.randn(*s, dtype=dtype) for s in ((rows, cols), (cols,), (cols,)))
    return Case(
        f"layer_norm {rows}×{cols}",
        dtype,
        lambda: lanewise.layer_norm(x, weight, bias),
        lambda: F.layer_norm(x, (cols,), weight, bias),
        flops=FLOPS * x.numel(),
        bytes=2 * x.nbytes,
    )


def _rms_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    x, weight = torch.randn(rows, cols, dtype=dtype), torch.randn(cols, dtype=dtype)
    return Case(
        f"rms_norm {rows}×{cols}",
        dtype,
        lambda: lanewise.rms_norm(x, weight),
        lambda: F.rms_norm(x, (cols,), weight, 1e-6),
        flops=FLOPS * x.numel(),
        bytes=2 * x.nbytes,
    )


def _add_rms_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    x, residual = (torch.randn(rows, cols, dtype=dtype) for _ in range(2))
    weight = torch.randn(cols, dtype=dtype)

    def torchs() -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return F.rms_norm(total, (cols,), weight, 1e-6), total

    return Case(
        f"add_rms_norm {rows}×{cols}",
        dtype,
        lambda: lanewise.add_rms_norm(x, residual, weight),
        torchs,
        flops=(FLOPS + 1) * x.numel(),
        bytes=4 * x.nbytes,
    )
