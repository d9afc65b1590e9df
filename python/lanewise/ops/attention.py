"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lanewise.ops._library import (
    ops,
    register_autocast,
    register_autograd,
    register_fake,
    register_no_gradient,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    *,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in one pass over the keys, without a score matrix in memory.

    The score of query ``i`` and key ``j``, whose distance is ``d = j − (i + Sk − Sq)`` since the
    last query is aligned with the last key, is::

        s = scale · q[i]·k[j]
        s = softcap · tanh(s / softcap)        if softcap > 0 (Gemma 2)
        s = s − slope · |d|                    with alibi_slopes (Press et al., 2022)
        s = s + bias[i, j]                     or −inf where a boolean bias is False
        s = −inf                               where causality or the window masks

    and ``out[i] = Σ_j softmax(s)[j] · v[j]``. Scores, softmax and sums are float32 whatever the
    inputs are. The blocks are merged by online softmax (Milakov and Gimelshein, 2018), as in
    FlashAttention (Dao et al., 2022).

    Args:
        q: ``[B, H, Sq, D]``, float32, bfloat16 or float16, D from 1 to 512. Any strides with the
            last 1, here and in k and v.
        k: ``[B, Hkv, Sk, D]``, q's dtype. H is a multiple of Hkv; query head ``h`` attends key
            head ``h // (H // Hkv)``.
        v: ``[B, Hkv, Sk, Dv]``, q's dtype, Dv from 1 to 512.
        bias: broadcastable to ``[B, H, Sq, Sk]``, any strides. Boolean: True attends. float32,
            bfloat16 or float16: added to the scores.
        sinks: ``[H]``, floating: one more logit per head, which takes probability and adds no
            value (Xiao et al., 2024; gpt-oss). Neither scaled, capped nor masked.
        alibi_slopes: ``[H]`` or ``[B, H]``, float32. A constant: it gets no gradient.
        causal: mask the keys after the query, ``d > 0``. Note the alignment: with ``Sq = 1`` the
            query attends every key, where torch's ``is_causal`` would let it attend only the first.
        window_left, window_right: mask the keys outside ``−window_left ≤ d ≤ window_right``;
            −1 leaves a side unbounded. With ``causal``, the right side is 0.
        softcap: cap of the scores, 0 for none.
        scale: factor of the products, ``1/√D`` if None.

    Returns:
        ``out`` ``[B, H, Sq, Dv]`` in q's dtype, and ``lse`` ``[B, H, Sq]`` float32, the natural log
        of the sum of exponentials, sink included: what merges partial results. A query that may
        attend nothing gives out 0 and lse −inf, whatever its sink.

        Differentiable in q, k, v, a floating bias and sinks, through out and lse. Under autocast
        q, k and v take the autocast dtype; bias, sinks and slopes stay as they are, since they
        enter float32 scores.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape, stride, head ratio or option.
    """
    return ops.attention(
        q,
        k,
        v,
        bias,
        sinks,
        alibi_slopes,
        causal=causal,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        scale=scale,
    )


@register_fake("attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return q.new_empty((*q.shape[:3], v.shape[3])), lse


@register_fake("attention_backward")
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor,
    lse: Tensor,
    *,
    needs_bias: bool = False,
    needs_sinks: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_gradients(q, k, v, bias, lse, needs_bias, needs_sinks)


def fake_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    needs_bias: bool,
    needs_sinks: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the backward ops return; q's dimension 1 counts the heads."""
    grad_bias = lse.new_empty(bias.shape if needs_bias and bias is not None else (0,))
    grad_sinks = lse.new_empty((q.shape[1] if needs_sinks else 0,))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_bias, grad_sinks


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.options = keyword_only_inputs
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple:
    q, k, v, bias, sinks, alibi_slopes, out, lse = ctx.saved_tensors
    needs_bias, needs_sinks = ctx.needs_input_grad[3:5]
    grad_q, grad_k, grad_v, grad_bias, grad_sinks = ops.attention_backward(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_lse,
        q,
        k,
        v,
        bias,
        sinks,
        alibi_slopes,
        out,
        lse,
        **ctx.options,
        needs_bias=needs_bias,
        needs_sinks=needs_sinks,
    )
    return (
        grad_q,
        grad_k,
        grad_v,
        grad_bias.to(bias.dtype) if needs_bias else None,
        grad_sinks.to(sinks.dtype) if needs_sinks else None,
        None,
    )


register_autograd("attention", _backward, _setup_context)
register_no_gradient("attention_backward")
register_autocast("attention", cast=("q", "k", "v"))
