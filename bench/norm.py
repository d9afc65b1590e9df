"""Norms, alone and with the addition of a residual."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench import peers
from bench.case import Case, Task
from bench.peers.question import AddRMSNorm, LayerNorm, RMSNorm
from bench.section import Section

# Per element: the sum of squares, the scaling and, where centred, the mean and the difference.
FLOPS = 6


def layer_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    """LayerNorm with weight and bias."""
    x, weight, bias = (torch.randn(*s, dtype=dtype) for s in ((rows, cols), (cols,), (cols,)))
    others, absent = peers.ask(LayerNorm(x, weight, bias))
    return Case(
        Task(f"layer_norm {rows}×{cols}", dtype, flops=FLOPS * x.numel(), bytes=2 * x.nbytes),
        ours={"": lambda: lanewise.layer_norm(x, weight, bias)},
        peers=others,
        reference=lambda: F.layer_norm(x.double(), (cols,), weight.double(), bias.double()),
        absent=absent,
    )


def rms_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    """RMSNorm with a weight."""
    x, weight = torch.randn(rows, cols, dtype=dtype), torch.randn(cols, dtype=dtype)
    others, absent = peers.ask(RMSNorm(x, weight))
    return Case(
        Task(f"rms_norm {rows}×{cols}", dtype, flops=FLOPS * x.numel(), bytes=2 * x.nbytes),
        ours={"": lambda: lanewise.rms_norm(x, weight)},
        peers=others,
        reference=lambda: F.rms_norm(x.double(), (cols,), weight.double(), 1e-6),
        absent=absent,
    )


def add_rms_norm(rows: int, cols: int, dtype: torch.dtype) -> Case:
    """RMSNorm of a sum, which is returned too."""
    x, residual = (torch.randn(rows, cols, dtype=dtype) for _ in range(2))
    weight = torch.randn(cols, dtype=dtype)
    others, absent = peers.ask(AddRMSNorm(x, residual, weight))

    def reference() -> tuple[torch.Tensor, torch.Tensor]:
        total = x.double() + residual.double()
        return F.rms_norm(total, (cols,), weight.double(), 1e-6), total

    return Case(
        Task(
            f"add_rms_norm {rows}×{cols}",
            dtype,
            flops=(FLOPS + 1) * x.numel(),
            bytes=4 * x.nbytes,
        ),
        ours={"": lambda: lanewise.add_rms_norm(x, residual, weight)},
        peers=others,
        reference=reference,
        absent=absent,
    )


# Rows × columns.
SECTIONS = (
    Section(
        "norm",
        [
            partial(layer_norm, 2048, 384, torch.float32),
            partial(layer_norm, 8192, 4096, torch.float32),
            partial(rms_norm, 8192, 4096, torch.bfloat16),
            partial(add_rms_norm, 8192, 4096, torch.bfloat16),
        ],
    ),
)
