"""Rotary position embedding against the usual formula in torch."""

from __future__ import annotations

from functools import partial

import torch

import lanewise
from bench import peers
from bench.case import Case, Task
from bench.peers.question import Rope
from bench.section import Section


def rotate(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> Case:
    """Every element of every head."""
    x = torch.randn(batch, heads, tokens, dim, dtype=dtype)
    angles = torch.outer(torch.arange(tokens).float(), 1e4 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos(), angles.sin()
    others, absent = peers.ask(Rope(x, cos, sin))

    def reference() -> torch.Tensor:
        first, second = x.double().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    return Case(
        Task(
            f"rope {batch}×{heads}×{tokens}×{dim}",
            dtype,
            flops=3 * x.numel(),
            bytes=2 * x.nbytes + cos.nbytes + sin.nbytes,
        ),
        ours={"": lambda: lanewise.rope(x, cos, sin)},
        peers=others,
        reference=reference,
        absent=absent,
    )


# Batch × heads × tokens × head size.
SECTIONS = (
    Section(
        "rope",
        [
            partial(rotate, 1, 32, 2048, 128, torch.float32),
            partial(rotate, 1, 32, 2048, 128, torch.bfloat16),
        ],
    ),
)
