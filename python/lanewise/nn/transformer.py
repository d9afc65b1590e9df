"""One transformer layer: attention and feed-forward, each with a norm and a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lanewise.nn.attention import Attention
from lanewise.nn.mlp import MLP
from lanewise.nn.norm import LayerNorm


class TransformerLayer(nn.Module):
    """Attention and feed-forward with their norms and residuals.

    Pre-norm (``norm_first=True``, as GPT-2, Llama):  ``x = x + attention(attention_norm(x))``, then
    ``x + mlp(mlp_norm(x))``. Post-norm (as BERT): ``x = attention_norm(x + attention(x))``, then
    ``mlp_norm(x + mlp(x))``.

    Both residuals are added in the epilogue of the last matrix product of their half. That moves
    one activation less through memory than writing the product and letting an add-and-norm op read
    it back.

    Args:
        attention: the attention half; decides about causality, heads and positions.
        mlp: the feed-forward half.
        norm: makes both norms: called with the embedding size, device and dtype; `LayerNorm`,
            `RMSNorm`,
            or ``functools.partial`` of one of them.
        norm_first: pre-norm, else post-norm.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: MLP,
        *,
        norm: Callable[..., nn.Module] = LayerNorm,
        norm_first: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention_norm = norm(attention.embed_dim, device=device, dtype=dtype)
        self.attention = attention
        self.mlp_norm = norm(attention.embed_dim, device=device, dtype=dtype)
        self.mlp = mlp

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """x [B, S, E] → [B, S, E]; mask and positions as in `Attention.forward`."""
        if self.norm_first:
            normed = self.attention_norm(x)
            x = self.attention(normed, mask, positions=positions, residual=x)
            return self.mlp(self.mlp_norm(x), residual=x)
        x = self.attention_norm(self.attention(x, mask, positions=positions, residual=x))
        return self.mlp_norm(self.mlp(x, residual=x))

    def extra_repr(self) -> str:
        return f"norm_first={self.norm_first}"
