"""F.scaled_dot_product_attention: the kernel that torch runs for it on the CPU, and its
gradient.

torch sends a call there unless it drops out, has a mask that wants a gradient, or is shaped in a
way of its own; those it composes of batched products, which are routed as such.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lanewise.integrations.aten import worth
from lanewise.integrations.aten.override import ISA, SERVED_DTYPES, Override, call, laid_out_like
from lanewise.integrations.aten.reason import DTYPE, EMPTY, SHAPE, STRIDE
from lanewise.ops._library import ops

NAME = "scaled_dot_product_attention"
DROPOUT = "dropout"
MASK = "mask is not of q's dtype or float32, or comes with is_causal"
SCALE = "scale is not finite, or too large"
HEAD_SIZE = "head size above 512, or another one for values"

_attention, _backward = ops.attention.default, ops.attention_backward.default
_aten = torch.ops.aten


def _tiny(q: Tensor, k: Tensor, *_: Any) -> bool:
    try:
        return q.numel() * k.size(-2) < worth.LEAST_ATTENTION.get(q.dtype, 0)
    except IndexError:  # too few dimensions, which is torch's to refuse
        return False


def _tiny_backward(grad: Tensor, q: Tensor, k: Tensor, *_: Any) -> bool:
    return _tiny(q, k)


def _decline(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    gradient: bool = False,
) -> str:
    dtype = q.dtype
    if dtype not in SERVED_DTYPES or k.dtype is not dtype or v.dtype is not dtype:
        return DTYPE
    if dropout_p:
        return DROPOUT
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        return SHAPE
    batch, heads, queries, dim = q.shape
    kv_batch, kv_heads, keys, kv_dim = k.shape
    if kv_batch != batch or v.shape[:3] != k.shape[:3] or kv_dim != dim:
        return SHAPE
    if dim > 512 or v.shape[3] != dim:
        return HEAD_SIZE
    if 0 in q.shape or 0 in k.shape:
        return EMPTY
    if heads % kv_heads:
        return SHAPE
    if dim > 1 and not (q.stride(3) == k.stride(3) == v.stride(3) == 1):
        return STRIDE
    if attn_mask is not None:
        if is_causal or (attn_mask.dtype is not dtype and attn_mask.dtype is not torch.float32):
            return MASK
        if attn_mask.dim() not in (2, 4) or not _broadcasts(
            attn_mask, (batch, heads, queries, keys)
        ):
            return SHAPE
    if scale is not None and not abs(scale) <= 1e30:
        return SCALE
    return worth.attention(ISA, dtype, heads // kv_heads, queries, keys, dim, is_causal, gradient)


def _broadcasts(mask: Tensor, shape: tuple[int, ...]) -> bool:
    own = zip(reversed(mask.shape), reversed(shape), strict=False)
    return all(size in (1, full) for size, full in own)


def _causal(q: Tensor, k: Tensor) -> dict[str, Any]:
    """torch lets query i attend the keys up to i, where lanewise aligns the last of both."""
    later = q.shape[2] - k.shape[2]
    return {"window_right": later} if later else {"causal": True}


def _attended(q: Tensor, keys: Tensor, is_causal: bool) -> Tensor:
    """The keys or values that some query may attend: without the others, both ends align."""
    return keys[:, :, : q.shape[2]] if is_causal else keys


def _serve(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    k, v = _attended(q, k, is_causal), _attended(q, v, is_causal)
    options = _causal(q, k) if is_causal else {}
    out, lse = call(_attention, q, k, v, attn_mask, scale=scale, **options)
    if attn_mask is not None:  # torch's of a query that may attend nothing
        lse.masked_fill_(lse == -math.inf, 0.0)
    _batch, heads, queries = lse.shape
    lse = laid_out_like(lse, (queries * heads, 1, heads))
    if q.stride() == out.stride():
        return out, lse
    return laid_out_like(out, torch.empty_like(q).stride()), lse


def _decline_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> str:
    if grad_out.dtype is not q.dtype or out.dtype is not q.dtype:
        return DTYPE
    if grad_out.shape != q.shape or out.shape != q.shape or logsumexp.shape != q.shape[:3]:
        return SHAPE
    return _decline(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale, gradient=True)


def _serve_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _attended(q, k, is_causal), _attended(q, v, is_causal)
    options = _causal(q, keys) if is_causal else {}
    grads = call(
        _backward,
        *(grad_out, None, q, keys, values, attn_mask, None, None, out, logsumexp),
        scale=scale,
        **options,
    )
    tokens = (q.shape[2], k.shape[2], k.shape[2])
    grad_q, grad_k, grad_v = map(_with_tokens_first, grads[:3], tokens)
    return grad_q, grad_k, grad_v


def _with_tokens_first(grad: Tensor, tokens: int) -> Tensor:
    """The gradient as torch lays it out, [batch, token, head, element], with zeros for the rest."""
    batch, heads, given, dim = grad.shape
    strides = (tokens * heads * dim, dim, heads * dim, 1)
    if given == tokens:
        return laid_out_like(grad, strides)
    whole = torch.empty_strided((batch, heads, tokens, dim), strides, dtype=grad.dtype)
    whole[:, :, :given] = grad
    whole[:, :, given:] = 0
    return whole


_kernel = _aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default
OVERRIDES = {
    NAME: (
        Override(NAME, _kernel, "CPU", _tiny, _decline, _serve),
        Override(
            f"{NAME} backward",
            _kernel_backward,
            "CPU",
            _tiny_backward,
            _decline_backward,
            _serve_backward,
        ),
    )
}
