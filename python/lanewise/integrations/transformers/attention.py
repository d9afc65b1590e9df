"""The attention function: transformers' arguments in the terms of `lanewise.attention`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise import ops
from lanewise.integrations.capturing import captured
from lanewise.integrations.transformers.mask import pattern_of
from lanewise.ops._library import in_transform

# Keywords of transformers' models that change the result and that nothing here can honour.
_UNSERVED = {
    "indices": "keys chosen for each query",
    "block_indices": "blocks of keys chosen for each query",
    "sinks": "a sink for each query (one for each head is s_aux)",
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface on `lanewise.attention`.

    Args:
        module: the layer; its ``is_causal`` counts where the argument is None.
        query: ``[B, H, Sq, D]``, float32, bfloat16 or float16.
        key: ``[B, Hkv, Sk, D]``; H is a multiple of Hkv, so heads are not repeated.
        value: ``[B, Hkv, Sk, Dv]``.
        attention_mask: bool, True attends, or floating, added to the scores; broadcastable to
            ``[B, H, Sq, Sk]``. It is the last word: causality and window are in it.
        dropout: probability of dropping a weight; where it is not 0, plain torch computes.
        scaling: factor of the products, ``1/√D`` if None.
        is_causal: without a mask, a query attends no key behind its own. The last query is at the
            last key.
        sliding_window: without a mask, how many keys a query attends, its own included; on both
            sides if it is not causal.
        softcap: cap of the scores.
        s_aux: ``[H]``, one more logit per head, without a value.
        position_bias: added to the scores, broadcastable to ``[B, H, Sq, Sk]``.
        output_attentions: whether to return the attention weights, for which some models ask by
            their hooks alone. Plain torch computes then, as it does in float64, in forward mode and
            in the transforms of ``torch.func``.

    Without a mask, ``cu_seq_lens_q`` and ``cu_seq_lens_k`` among the keywords are the bounds of
    sequences packed into a batch of one. Other keywords are not about attention.

    Returns:
        ``[B, Sq, H, Dv]``, contiguous, and the weights ``[B, H, Sq, Sk]`` or None.

    Raises:
        ValueError: if transformers asks for sparse attention, or sinks of each query.
        RuntimeError: from `lanewise.attention`.
    """
    _require_served(kwargs)
    weights = output_attentions or captured("attentions")
    causal, window_left, window_right = False, -1, -1
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if sliding_window is not None:
            window_left = window_right = sliding_window - 1
    elif not weights and (pattern := pattern_of(attention_mask, query.shape[2], key.shape[2])):
        attention_mask = pattern.padding
        causal = pattern.causal
        window_left, window_right = pattern.window_left, pattern.window_right
        key, value = key[:, :, : pattern.keys], value[:, :, : pattern.keys]
        if position_bias is not None:
            position_bias = position_bias[..., : pattern.keys]

    options: dict[str, Any] = {
        "causal": causal,
        "window_left": window_left,
        "window_right": window_right,
        "softcap": softcap or 0.0,
        "scale": scaling,
    }
    if attention_mask is None and kwargs.get("cu_seq_lens_q") is not None:
        if dropout or weights or position_bias is not None:
            raise ValueError(
                'attn_implementation="lanewise": sequences packed by cu_seq_lens_q must come '
                "without dropout, output_attentions and position_bias, or with position_ids instead"
            )
        return _packed_attention(query, key, value, s_aux, kwargs, options), None

    bias = _join(attention_mask, position_bias)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    kept: Tensor | None = None
    if dropout or weights or in_transform() or query.dtype is torch.float64:
        out, probabilities = composed_attention(query, key, value, bias, s_aux, dropout, **options)
        kept = probabilities if weights else None
    else:
        out, _ = ops.attention(query, key, value, bias, s_aux, **options)
    return out.transpose(1, 2).contiguous(), kept


def _require_served(kwargs: dict[str, Any]) -> None:
    for name, meaning in _UNSERVED.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f'attn_implementation="lanewise": {name} must be None: it means {meaning}, '
                'which "eager" serves'
            )


def _join(mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    if mask is None or position_bias is None:
        return position_bias if mask is None else mask
    if mask.dtype == torch.bool:
        return torch.where(mask, position_bias, -torch.inf)
    return position_bias + mask


def _packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    bounds: dict[str, Any],
    options: dict[str, Any],
) -> Tensor:
    if query.shape[0] != 1:
        raise ValueError(
            'attn_implementation="lanewise": sequences packed by cu_seq_lens_q must be a batch of '
            f"1, got {query.shape[0]}"
        )
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    lengths = bounds["max_length_q"], bounds["max_length_k"]
    cu_seqlens = bounds["cu_seq_lens_q"], bounds["cu_seq_lens_k"]
    out, _ = ops.attention_varlen(q, k, v, *cu_seqlens, *lengths, None, sinks, **options)
    return out[None]


def composed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    dropout: float,
    *,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """`lanewise.attention`'s out with weights dropped, and these weights, in plain torch
    operations.

    torch's own CPU path leaves its fused kernel for dropout too. The steps and their dtypes are
    those of the "eager" functions, which therefore drop the same weights at the same seed.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)

    # Not −inf, which a query that may attend nothing would turn into NaN.
    masked = torch.finfo(scores.dtype).min
    if bias is not None:
        floating = bias.is_floating_point()
        scores = (scores + bias).clamp_min(masked) if floating else scores.where(bias, masked)
    last_query, last_key = q.shape[2] - 1, k.shape[2] - 1
    positions = torch.arange(q.shape[2], device=q.device)[:, None] + (last_key - last_query)
    distance = torch.arange(k.shape[2], device=q.device) - positions
    if causal or window_right >= 0:
        scores = scores.masked_fill(distance > (0 if causal else window_right), masked)
    if window_left >= 0:
        scores = scores.masked_fill(distance < -window_left, masked)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)

    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(v.dtype)
    weights = F.dropout(weights[..., : k.shape[2]], dropout)
    return weights @ v, weights
