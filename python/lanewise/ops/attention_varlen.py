"""Attention over sequences of unequal lengths, packed one behind the other."""

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
from lanewise.ops.attention import fake_gradients


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
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
    """:func:`lanewise.attention` of every sequence of a batch, without padding.

    Sequence ``b`` owns the queries ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` of q and the keys
    ``cu_seqlens_k[b]`` to ``cu_seqlens_k[b + 1]`` of k and v, and attends no others. Its last query
    is aligned with its last key. A sequence may be empty, in queries, in keys or in both.

    Args:
        q: ``[Tq, H, D]``, float32, bfloat16 or float16, D from 1 to 512. Any strides with the last
            1, here and in k and v.
        k: ``[Tk, Hkv, D]``, q's dtype. H is a multiple of Hkv.
        v: ``[Tk, Hkv, Dv]``, q's dtype, Dv from 1 to 512.
        cu_seqlens_q, cu_seqlens_k: ``[B + 1]``, int32 or int64: 0 and the running sums of the
            sequences' lengths, so that the last entry is Tq (Tk).
        max_seqlen_q, max_seqlen_k: at least the length of the longest sequence. They are extents of
            the bias and bound nothing else, so that a loose bound costs no time.
        bias: broadcastable to ``[B, H, max_seqlen_q, max_seqlen_k]`` and indexed by the places of
            query and key in their own sequence. Boolean: True attends. float32, bfloat16 or
            float16: added to the scores.
        sinks, alibi_slopes, causal, window_left, window_right, softcap, scale: as in
            :func:`lanewise.attention`.

    Returns:
        ``out`` ``[Tq, H, Dv]`` in q's dtype and ``lse`` ``[H, Tq]`` float32. A query that may
        attend nothing, as one of a sequence without keys, gives out 0 and lse −inf.

        Differentiable in q, k, v, a floating bias and sinks, through out and lse. Under autocast
        q, k and v take the autocast dtype.

    Raises:
        RuntimeError: on a wrong device, dtype, rank, shape, stride, head ratio or option; where a
            ``cu_seqlens`` does not start at 0, decreases, or does not end at the number of tokens;
            where a sequence is longer than its ``max_seqlen``.
    """
    return ops.attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        bias,
        sinks,
        alibi_slopes,
        causal=causal,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        scale=scale,
    )


@register_fake("attention_varlen")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    return fake_packed(q, v.shape[2])


def fake_packed(q: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
    """What ops over packed queries [Tq, H, D] return."""
    tokens, heads = q.shape[:2]
    lse = q.new_empty((heads, tokens), dtype=torch.float32)
    return q.new_empty((tokens, heads, value_dim)), lse


@register_fake("attention_varlen_backward")
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
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


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: tuple) -> None:
    *tensors, max_seqlen_q, max_seqlen_k = inputs[:7]
    ctx.save_for_backward(*tensors, *inputs[7:], *output)
    lengths = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    ctx.options = {**keyword_only_inputs, **lengths}
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple:
    *inputs, bias, sinks, alibi_slopes, out, lse = ctx.saved_tensors
    needs_bias, needs_sinks = ctx.needs_input_grad[7:9]
    grad_q, grad_k, grad_v, grad_bias, grad_sinks = ops.attention_varlen_backward(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_lse,
        *inputs,
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
        *(None,) * 4,
        grad_bias.to(bias.dtype) if needs_bias else None,
        grad_sinks.to(sinks.dtype) if needs_sinks else None,
        None,
    )


register_autograd("attention_varlen", _backward, _setup_context)
register_no_gradient("attention_varlen_backward")
register_autocast("attention_varlen", cast=("q", "k", "v"))
