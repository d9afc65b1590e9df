"""One transformer layer: attention and feed-forward, each with a norm and a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lanewise.nn import fused
from lanewise.nn.attention import Attention
from lanewise.nn.cache import LayerCache
from lanewise.nn.mlp import MLP
from lanewise.nn.norm import LayerNorm
from lanewise.nn.packing import HoldsPackings


class TransformerLayer(HoldsPackings):
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
            `RMSNorm`, or ``functools.partial`` of one of them.
        norm_first: pre-norm, else post-norm.
        norm_last: pre-norm with a second norm over what each half adds to the residual
            (``attention_post_norm``, ``mlp_post_norm``), as Gemma 2 and 3 have.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: MLP,
        *,
        norm: Callable[..., nn.Module] = LayerNorm,
        norm_first: bool = True,
        norm_last: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm_last and not norm_first:
            raise ValueError("lanewise.nn.TransformerLayer: norm_last needs norm_first")
        self.norm_first = norm_first

        def make_norm() -> nn.Module:
            return norm(attention.embed_dim, device=device, dtype=dtype)

        self.attention_norm = make_norm()
        self.attention = attention
        self.attention_post_norm = make_norm() if norm_last else None
        self.mlp_norm = make_norm()
        self.mlp = mlp
        self.mlp_post_norm = make_norm() if norm_last else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [B, S, E] → [B, S, E]; mask and positions as in `Attention.forward`.

        With a cache, x [T, E] → [T, E], as `Attention.forward` does; a packed layer without hooks
        is one call of `lanewise.decoder_layer` then.
        """
        if cache is not None and not self.norm_first:
            raise ValueError("lanewise.nn.TransformerLayer: a cache is for norm_first")
        if (
            cache is not None
            and mask is None
            and positions is None
            and (plan := fused.plan(self, x)) is not None
        ):
            return fused.run(plan, x, cache)
        if not self.norm_first:
            x = self.attention_norm(self.attention(x, mask, positions=positions, residual=x))
            return self.mlp_norm(self.mlp(x, residual=x))
        x = self._add_attention(x, mask, positions, cache)
        if self.mlp_post_norm is None:
            return self.mlp(self.mlp_norm(x), residual=x)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))

    def last(self, x: Tensor, cache: LayerCache) -> Tensor:
        """x [T, E] → [B, E]: what `forward` gives for the last token of each sequence, all of which
        must have one; the others only leave their keys and values behind."""
        ours = type(self).forward is TransformerLayer.forward
        if ours and (plan := fused.plan(self, x)) is not None:
            return fused.run(plan, x, cache, last_only=True)
        return self(x, cache=cache)[cache.step.cu_seqlens_q[1:] - 1]

    def _add_attention(
        self, x: Tensor, mask: Tensor | None, positions: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        normed = self.attention_norm(x)
        options: dict[str, Any] = {"positions": positions, "cache": cache}
        if self.attention_post_norm is None:
            return self.attention(normed, mask, residual=x, **options)
        return x + self.attention_post_norm(self.attention(normed, mask, **options))

    def extra_repr(self) -> str:
        norm_last = ", norm_last=True" if self.mlp_post_norm is not None else ""
        return f"norm_first={self.norm_first}{norm_last}"
