"""Rotary positions from the tables that transformers' models hand to their layers."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = "_lanewise_half"


def half_tables(position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """cos, sin [B, S, D], whose halves are alike → [B, S, D/2] float32."""
    cos, sin = position_embeddings
    return _half(cos), _half(sin)


def _half(table: Tensor) -> Tensor:
    # All layers get the same table: what is made of it once rides on it.
    half = None if torch.compiler.is_compiling() else getattr(table, _HALF, None)
    if half is None:
        half = table[..., : table.shape[-1] // 2].float()
        if not torch.compiler.is_compiling():
            setattr(table, _HALF, half)
    return half
