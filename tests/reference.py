"""What every op means, in float64 and plain torch: one function per op, with the op's signature.

These functions are the specification, so they are written to be read: no blocking, no special
cases for speed. Gradients come from autograd through them. Whatever the dtype of the inputs, the
arithmetic is float64 and so is the result, except where an op's contract names a rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


# --- attention -----------------------------------------------------------------------------------


def key_distance(queries: int, keys: int) -> Tensor:
    """[Sq, Sk]: key position minus query position, with the last query at the last key."""
    query_position = torch.arange(queries)[:, None] + keys - queries
    return torch.arange(keys)[None, :] - query_position


def visible(queries: int, keys: int, causal: bool, window_left: int, window_right: int) -> Tensor:
    """[Sq, Sk] bool: which keys causality and the window let each query attend."""
    distance = key_distance(queries, keys)
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        allowed &= distance <= 0
    if window_left >= 0:
        allowed &= distance >= -window_left
    if window_right >= 0:
        allowed &= distance <= window_right
    return allowed


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
    """(out [B, H, Sq, Dv], lse [B, H, Sq]); see `attention_in` for the arithmetic."""
    return attention_in(
        torch.float64,
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


def attention_in(
    dtype: torch.dtype,
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
    powers_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention by its formula, every step in `dtype`: float64 specifies, others serve as peers.

    With `powers_of_two` the softmax is one of powers of two of scores times log2(e), as that of
    FlexAttention and FlashAttention (Dao 2023): a rounding more for each score, and for the lse.
    """
    heads, queries, head_dim = q.shape[1:]
    keys = k.shape[2]
    group = heads // max(k.shape[1], 1)
    q, k, v = (t.to(dtype) for t in (q, k, v))
    k = k.repeat_interleave(group, dim=1)
    v = v.repeat_interleave(group, dim=1)

    scores = q @ k.mT * (1 / math.sqrt(head_dim) if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:  # [H] or [B, H]
        distance = key_distance(queries, keys).abs().to(dtype)
        scores = scores - alibi_slopes.to(dtype)[..., None, None] * distance
    if bias is not None and bias.dtype != torch.bool:
        scores = scores + bias.to(dtype)
    if bias is not None and bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias, -math.inf)
    hidden = ~visible(queries, keys, causal, window_left, window_right)
    scores = scores.masked_fill(hidden, -math.inf)

    # A row that may attend nothing has no softmax: it is computed on zeros, then overwritten.
    dead = (scores == -math.inf).all(-1)
    logits = scores.masked_fill(dead[..., None], 0.0)
    if sinks is not None:  # one more logit, which takes probability and has no value
        sink = sinks.to(dtype)[:, None, None].expand(*scores.shape[:3], 1)
        logits = torch.cat([logits, sink], dim=-1)
    lse = logits.logsumexp(-1)
    if powers_of_two:
        log2e = math.log2(math.e)
        weights = (logits * log2e - (lse * log2e)[..., None]).exp2()
    else:
        weights = (logits - lse[..., None]).exp()
    weights = weights[..., :keys].masked_fill(dead[..., None], 0.0)
    return weights @ v, lse.masked_fill(dead, -math.inf)


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
    attend: Callable[..., tuple[Tensor, Tensor]] = attention,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(out [Tq, H, Dv], lse [H, Tq]): `attend` of every sequence by itself."""
    batch, heads = len(cu_seqlens_q) - 1, q.shape[1]
    if bias is not None:
        bias = bias.expand(batch, heads, max_seqlen_q, max_seqlen_k)
    outs, norms = [], []
    for b in range(batch):
        queries = slice(int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1]))
        keys = slice(int(cu_seqlens_k[b]), int(cu_seqlens_k[b + 1]))
        rows, columns = queries.stop - queries.start, keys.stop - keys.start
        out, lse = attend(
            *(t.transpose(0, 1)[None] for t in (q[queries], k[keys], v[keys])),
            None if bias is None else bias[b : b + 1, :, :rows, :columns],
            sinks,
            alibi_slopes
            if alibi_slopes is None or alibi_slopes.dim() == 1
            else alibi_slopes[b : b + 1],
            **options,
        )
        outs.append(out[0].transpose(0, 1))
        norms.append(lse[0])
    if not outs:
        return q.double().new_empty(0, heads, v.shape[2]), q.double().new_empty(heads, 0)
    return torch.cat(outs), torch.cat(norms, dim=1)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    max_seqlen_q: int,
    *masks: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(out [Tq, H, Dv], lse [H, Tq]): `attention_varlen` of the keys that the table gathers."""
    block_size = k_cache.shape[1]

    def gathered(cache: Tensor) -> Tensor:
        packed = [cache.flatten(0, 1)[:0]]
        for row, context in zip(block_table, context_lens.tolist(), strict=True):
            needed = row[: -(-context // block_size)].long()
            packed.append(cache[needed].flatten(0, 1)[:context])
        return torch.cat(packed)

    starts = torch.cat([torch.zeros(1), context_lens.cumsum(0)]).long()
    longest = block_table.shape[1] * block_size
    return attention_varlen(
        *(q, gathered(k_cache), gathered(v_cache), cu_seqlens_q, starts, max_seqlen_q, longest),
        *masks,
        **options,
    )


def paged_cache_write(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> None:
    """Token t goes to place slots[t] of the caches' tokens, if that is not -1."""
    block_size = k_cache.shape[1]
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // block_size, slot % block_size] = k[t]
            v_cache[slot // block_size, slot % block_size] = v[t]


# --- matrix products -----------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, batched and broadcast as torch.matmul does."""
    return a.double() @ b.double()


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
) -> Tensor:
    """activation(x @ weight.T + bias) + residual"""
    z = x.double() @ weight.double().mT
    if bias is not None:
        z = z + bias.double()
    y = ACTIVATIONS[activation](z)
    return y if residual is None else y + residual.double()


def gated_linear(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """activation(x @ gate.T + gate_bias) * (x @ up.T + up_bias)"""
    return linear(x, gate, gate_bias, activation=activation) * linear(x, up, up_bias)


# --- norms ---------------------------------------------------------------------------------------


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, weight_offset: float = 0.0
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * (weight + weight_offset), over the last dimension.

    The offset belongs to a weight: without one there is nothing to shift, and the factor is 1.
    """
    x = x.double()
    y = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * (weight.double() + weight_offset)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    y = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(y, sum): the sum is rounded once to x's dtype, y is the norm of the unrounded sum."""
    total = x.double() + residual.double()
    return rms_norm(total, weight, eps=eps, weight_offset=weight_offset), total.to(x.dtype)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(y, sum): the sum is rounded once to x's dtype, y is the norm of the unrounded sum."""
    total = x.double() + residual.double()
    return layer_norm(total, weight, bias, eps=eps), total.to(x.dtype)


# --- rotary embedding ----------------------------------------------------------------------------


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotates the pairs of the first R dimensions of x [B, H, S, D]; cos, sin [(B,) S, R/2].

    The pairs are (i, i + R/2), or (2i, 2i + 1) when interleaved; the remaining D - R pass through.
    """
    x, cos, sin = x.double(), cos.double(), sin.double()
    if cos.dim() == 3:  # one row of angles per batch entry: broadcast over the heads
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    pairs = rotated.unflatten(-1, (half, 2) if interleaved else (2, half))
    pair_dim = -1 if interleaved else -2
    first, second = pairs.unbind(pair_dim)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], pair_dim)
    return torch.cat([turned.flatten(-2), rest], dim=-1)
