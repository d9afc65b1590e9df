"""attention: sequences of equal lengths, or padded to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Options, Sequences, attend
from .problem import check_tensors


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q @ k.T * scale, capped, biased, masked) @ v, with scores and softmax in float32.

    Args:
        q: [B, H, Sq, D], float32, bfloat16 or float16, D up to 512, innermost stride 1.
        k: [B, Hkv, Sk, D], v: [B, Hkv, Sk, Dv]: the same; H is a multiple of Hkv.
        bias: broadcasts to [B, H, Sq, Sk], any strides; bool (True attends) or floating (added).
        sinks: [H], one logit per head that takes probability and adds no value.
        alibi_slopes: [H] or [B, H] float32; adds -slope · |i + Sk - Sq - j| to query i and key j.
        causal: query i sees no key after i + Sk - Sq: the last query stands at the last key.
        window_left, window_right: how many keys before and after its own a query sees; -1 for all.
        softcap: c > 0 turns a score s into c · tanh(s / c).
        scale: 1 / sqrt(D) unless given.

    Returns:
        out [B, H, Sq, Dv] in q's dtype, and lse [B, H, Sq] float32, the natural logarithm of the
        sum of each row's exponentials. A row that may attend nothing gives 0 and -inf.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value.
    """
    check_tensors(q, k, v, bias, sinks, alibi_slopes)
    batch, heads, len_q = q.shape[:3]
    heads_kv, len_k, size_v = v.shape[1:]
    out = q.new_empty(batch, heads, len_q, size_v)
    lse = q.new_empty(batch, heads, len_q, dtype=torch.float32)
    sequences = Sequences(
        batch,
        heads_kv,
        len_q,
        len_k,
        batch * len_q,
        batch * len_k,
        q.stride()[:3],
        k.stride()[:3],
        v.stride()[:3],
    )
    options = Options(bias, sinks, alibi_slopes, causal, window_left, window_right, softcap, scale)
    attend("attention", q, k, v, out, lse, sequences, options)
    return out, lse
