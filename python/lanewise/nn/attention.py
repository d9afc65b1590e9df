"""Self-attention with its projections: multi-head, grouped-query or multi-query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lanewise import ops
from lanewise.nn.linear import Linear, project
from lanewise.nn.position import RotaryEmbedding


class Attention(nn.Module):
    """Self-attention on `lanewise.attention`, with the layers q_proj, k_proj, v_proj and o_proj.

    There is no dropout: the layer serves inference, and fine-tuning without dropout.

    Args:
        embed_dim: size E of each input row.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads, a divisor of num_heads; num_heads by default,
            1 for multi-query attention.
        head_dim: size of each head; embed_dim / num_heads by default.
        bias: whether q_proj, k_proj and v_proj have a bias.
        out_bias: whether o_proj has one; as ``bias`` by default.
        causal: whether a query may attend only keys at its own position and before.
        window_left: how many keys before its own position a query may attend; -1 means all.
        window_right: the same for keys after it.
        softcap: c > 0 turns a score s into ``c * tanh(s / c)``; 0 leaves it.
        scale: factor on the scores; ``head_dim**-0.5`` by default.
        sinks: adds the parameter ``sinks`` [num_heads], one logit per head that takes probability
            but
            has no value.
        qk_norm: makes a norm over head_dim for queries and for keys (``q_norm``, ``k_norm``), e.g.
            ``RMSNorm``; called with head_dim, device and dtype.
        rotary: rotates queries and keys after that norm. Layers may share one.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        causal: bool = False,
        window_left: int = -1,
        window_right: int = -1,
        softcap: float = 0.0,
        scale: float | None = None,
        sinks: bool = False,
        qk_norm: Callable[..., nn.Module] | None = None,
        rotary: RotaryEmbedding | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_heads(embed_dim, num_heads, self.num_kv_heads, head_dim)
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.causal = causal
        self.window_left = window_left
        self.window_right = window_right
        self.softcap = softcap
        self.scale = scale

        q_dim, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Linear(embed_dim, q_dim, bias, **factory)
        self.k_proj = Linear(embed_dim, kv_dim, bias, **factory)
        self.v_proj = Linear(embed_dim, kv_dim, bias, **factory)
        self.o_proj = Linear(q_dim, embed_dim, bias if out_bias is None else out_bias, **factory)
        self.q_norm = qk_norm(self.head_dim, **factory) if qk_norm else None
        self.k_norm = qk_norm(self.head_dim, **factory) if qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(num_heads, **factory)) if sinks else None
        self.rotary = rotary

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """x [B, S, E] → [B, S, E].

        Args:
            mask: broadcasts to [B, num_heads, S, S]; bool (True = attend) or float (added to the
                scores).
            positions: integer [S] or [B, S], for ``rotary``; 0 … S-1 by default.
            residual: [B, S, E], added to the result.
        """
        q = self._heads(self.q_proj(x), self.num_heads, self.q_norm, self.rotary, positions)
        k = self._heads(self.k_proj(x), self.num_kv_heads, self.k_norm, self.rotary, positions)
        v = self._heads(self.v_proj(x), self.num_kv_heads)
        out, _ = ops.attention(
            q,
            k,
            v,
            bias=mask,
            sinks=self.sinks,
            causal=self.causal,
            window_left=self.window_left,
            window_right=self.window_right,
            softcap=self.softcap,
            scale=self.scale,
        )
        return project(self.o_proj, out.transpose(1, 2).flatten(2), residual)

    def _heads(
        self,
        x: Tensor,
        count: int,
        norm: nn.Module | None = None,
        rotary: RotaryEmbedding | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """[B, S, count * head_dim] → [B, count, S, head_dim], normalised and rotated as asked."""
        x = x.unflatten(-1, (count, self.head_dim))
        x = x if norm is None else norm(x)
        x = x.transpose(1, 2)
        return x if rotary is None else rotary(x, positions)

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, causal={self.causal}"
        )


def _check_heads(embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int | None) -> None:
    if head_dim is None and embed_dim % num_heads:
        raise ValueError(
            f"lanewise.nn.Attention: num_heads is {num_heads}, which does not divide embed_dim "
            f"{embed_dim}; give head_dim"
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"lanewise.nn.Attention: num_kv_heads is {num_kv_heads}, which does not divide "
            f"num_heads {num_heads}"
        )
