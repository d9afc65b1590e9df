"""Self-attention with its projections: multi-head, grouped-query or multi-query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lanewise import ops
from lanewise.nn.cache import LayerCache
from lanewise.nn.linear import Linear, fuses, project
from lanewise.nn.packing import Packing, holds_weight
from lanewise.nn.position import RotaryEmbedding


class Attention(Packing):
    """Self-attention on `lanewise.attention`, with the layers q_proj, k_proj, v_proj and o_proj.

    There is no dropout: the layer serves inference, and fine-tuning without dropout. `pack` packs
    the weights of q_proj, k_proj and v_proj as one, so that one product makes all heads.

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
            but has no value.
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
        self.packed_bias: Tensor | None
        self.unpack()

    def _owners(self) -> tuple[nn.Linear, ...]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        ours = fuses(*projections) and all(map(holds_weight, projections))
        return projections if ours else ()

    def _sources(self) -> tuple[Tensor, ...]:
        owners = self._owners()
        biases = (owner.bias for owner in owners if owner.bias is not None)
        return tuple(owner.weight for owner in owners) + tuple(biases)

    def pack(self, *, release: bool = False) -> Self:
        packed_bias = _joint_bias(self._owners())
        super().pack(release=release)
        self.register_buffer("packed_bias", packed_bias, persistent=False)
        return self

    def unpack(self) -> Self:
        super().unpack()
        self.register_buffer("packed_bias", None, persistent=False)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "_buffers": {**state["_buffers"], "packed_bias": None}}

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        residual: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x [B, S, E] → [B, S, E]; with a cache, x [T, E] → [T, E].

        Args:
            mask: broadcasts to [B, num_heads, S, S]; bool (True = attend) or float (added to the
                scores).
            positions: integer [S] or [B, S], for ``rotary``; 0 … S-1 by default.
            residual: of x's shape, added to the result.
            cache: the keys and values of earlier tokens. x holds new tokens then, packed one
                sequence after another; their keys and values are added, and each attends what its
                sequence holds up to itself (and in the window): for causal attention, without a
                mask or positions. Not differentiable.
        """
        if cache is not None and (not self.causal or mask is not None or positions is not None):
            raise ValueError(
                "lanewise.nn.Attention: a cache is for causal attention, without mask and positions"
            )
        q, k, v = self._project(x)
        if cache is not None:
            out = self._cached(q, k, v, cache)
        else:
            out, _ = ops.attention(
                self._place(q.transpose(1, 2), positions),
                self._place(k.transpose(1, 2), positions),
                v.transpose(1, 2),
                bias=mask,
                sinks=self.sinks,
                causal=self.causal,
                window_left=self.window_left,
                window_right=self.window_right,
                softcap=self.softcap,
                scale=self.scale,
            )
            out = out.transpose(1, 2)
        return project(self.o_proj, out.flatten(-2), residual)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., E] → queries, keys and values [..., heads, head_dim], the first two normalised."""
        counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        packed = self.usable_pack(x) if self.packed_weight is not None else None
        if packed is not None:
            heads = ops.linear_packed(x, packed, self.packed_bias)
            q, k, v = heads.unflatten(-1, (-1, self.head_dim)).split(counts, -2)
        else:
            q, k, v = (
                layer(x).unflatten(-1, (count, self.head_dim))
                for layer, count in zip(
                    (self.q_proj, self.k_proj, self.v_proj), counts, strict=True
                )
            )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def _place(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """[B, H, S, head_dim], rotated where the layer rotates."""
        return x if self.rotary is None else self.rotary(x, positions)

    def _cached(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache) -> Tensor:
        """q, k, v [T, heads, head_dim] → [T, num_heads, head_dim]."""
        step = cache.step
        if self.rotary is not None:  # [T, H, D] as a batch of one sequence
            q, k = (
                self.rotary(heads[None].transpose(1, 2), step.positions).transpose(1, 2)[0]
                for heads in (q, k)
            )
        ops.paged_cache_write(k, v, cache.k, cache.v, step.slots)
        out, _ = ops.paged_attention(
            q,
            cache.k,
            cache.v,
            step.cu_seqlens_q,
            step.block_table,
            step.context_lens,
            step.max_seqlen_q,
            sinks=self.sinks,
            causal=True,
            window_left=self.window_left,
            softcap=self.softcap,
            scale=self.scale,
        )
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, causal={self.causal}"
        )


def _joint_bias(layers: tuple[nn.Linear, ...]) -> Tensor | None:
    """The biases one after another, zeros where a layer has none; None where none has one."""
    if all(layer.bias is None for layer in layers):
        return None
    biases: list[Tensor] = [
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return torch.cat(biases).detach()


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
