"""torch as it is called: one op after another."""

from __future__ import annotations

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import Side
from bench.peers.question import (
    AddRMSNorm,
    Attention,
    GatedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Question,
    RMSNorm,
    Rope,
    Unanswered,
)

ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu}


@singledispatch
def answer(question: Question) -> Side:
    """As a user would write it; torch has ops for all of them."""
    raise Unanswered


@answer.register
def _(q: Linear) -> Side:
    if q.activation == "none":
        return lambda: F.linear(q.x, q.weight, q.bias)
    activate = ACTIVATIONS[q.activation]
    return lambda: activate(F.linear(q.x, q.weight, q.bias))


@answer.register
def _(q: GatedLinear) -> Side:
    return lambda: F.silu(F.linear(q.x, q.gate)) * F.linear(q.x, q.up)


@answer.register
def _(q: Matmul) -> Side:
    return lambda: q.a @ q.b


@answer.register
def _(q: Attention) -> Side:
    """Its fused op; a window is a mask of q's dtype, which it takes without a conversion."""
    mask = None
    if q.window:
        distance = torch.arange(q.k.shape[2]) - torch.arange(q.q.shape[2])[:, None]
        seen = (distance <= 0) & (distance > -q.window)
        mask = torch.zeros(seen.shape, dtype=q.q.dtype).masked_fill_(~seen, -torch.inf)
    causal, grouped = q.causal and mask is None, q.grouped
    return lambda: F.scaled_dot_product_attention(
        q.q, q.k, q.v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


@answer.register
def _(q: LayerNorm) -> Side:
    shape = q.weight.shape
    return lambda: F.layer_norm(q.x, shape, q.weight, q.bias, q.eps)


@answer.register
def _(q: RMSNorm) -> Side:
    shape = q.weight.shape
    return lambda: F.rms_norm(q.x, shape, q.weight, q.eps)


@answer.register
def _(q: AddRMSNorm) -> Side:
    shape = q.weight.shape

    def run() -> tuple[Tensor, Tensor]:
        total = q.x + q.residual
        return F.rms_norm(total, shape, q.weight, q.eps), total

    return run


@answer.register
def _(q: Rope) -> Side:
    """As transformers writes it, with tables of the full width in x's dtype."""
    cos, sin = (torch.cat((t, t), -1).to(q.x.dtype) for t in (q.cos, q.sin))

    def run() -> Tensor:
        first, second = q.x.chunk(2, dim=-1)
        return q.x * cos + torch.cat((-second, first), -1) * sin

    return run
